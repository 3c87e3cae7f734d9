"""Bytes in memory: of models, of what a decode step reads, and what is free."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from trimtab.environment import available_host_bytes
from trimtab.errors import ConfigError
from trimtab.models.architectures import ADAPTERS
from trimtab.models.copies import copy_of


def parameter_bytes(model: PreTrainedModel) -> int:
    """Return the bytes of a model's parameters, tied ones once."""
    return sum(parameter.nbytes for parameter in model.parameters())


def bytes_by_device(model: PreTrainedModel) -> dict[torch.device, int]:
    """Return the bytes of a model's parameters on each device that it lies on."""
    held: dict[torch.device, int] = {}
    for parameter in model.parameters():
        held[parameter.device] = held.get(parameter.device, 0) + parameter.nbytes
    return held


def reset_peaks(model: PreTrainedModel) -> None:
    """Have the peaks of what is allocated on a model's GPUs begin anew."""
    for device in bytes_by_device(model):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)


def device_names(model: PreTrainedModel) -> str:
    """Return where a model lies, with shares of its bytes where that is on several devices."""
    held = bytes_by_device(model)
    if len(held) == 1:
        return str(next(iter(held)))
    total = sum(held.values())
    return " and ".join(f"{device} ({part / total:.0%})" for device, part in held.items())


def step_bytes(model: PreTrainedModel) -> int:
    """Return the parameter bytes that one decode step reads.

    All of them count, but learned positions count with one row, and so does an input embedding that
    is not tied to the head.
    """
    embedding = cast(Tensor, model.get_input_embeddings().weight)
    tied = model.get_output_embeddings().weight is embedding
    tables = [] if tied else [embedding]
    adapter = ADAPTERS.get(type(model).__name__)
    if adapter is not None and adapter.positions is not None:
        tables.append(cast(Tensor, model.get_submodule(adapter.positions).weight))
    return parameter_bytes(model) - sum(table.nbytes - table[0].nbytes for table in tables)


def copied(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy of a model, for a paired measurement.

    Raises
    ------
    ConfigError
        If it does not fit, with the memory needed and the memory free.
    """
    require_room_for_copy(model)
    return copy_of(model)


def twin(model: PreTrainedModel) -> PreTrainedModel:
    """Return a model with the same weights, whose attention can be set independently."""
    return copy_of(model, [*model.parameters(), *model.buffers()])


def require_room_for_copy(model: PreTrainedModel) -> None:
    """Refuse a paired measurement where a second copy of the model does not fit.

    Raises
    ------
    ConfigError
        Naming the memory needed and the memory free.
    """
    for device, needed in bytes_by_device(model).items():
        free = _free_bytes(device)
        if needed > free:
            raise ConfigError(
                "paired",
                "true",
                f"a second copy of the model takes {needed / 2**30:.1f} GiB on {device} and "
                f"{free / 2**30:.1f} GiB are free: use paired=false",
            )


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return available_host_bytes()
