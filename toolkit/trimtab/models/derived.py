"""Tensors that a model computes from its config, such as the frequencies of RoPE.

No checkpoint holds them, so that what a caller makes of them is in the live model alone.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

CLOSE = 1e-5  # relative: other machines round powers otherwise in the last bit


@torch.no_grad()
def unlike_config(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return the buffers that are in no checkpoint and not what the model's config makes of them.

    A buffer that has been cast to another dtype is what the config makes of it.

    Returns
    -------
    dict of str to Tensor
        By their names in the model.
    """
    found: dict[str, Tensor] = {}
    for place, module in model.named_modules():
        if not (own := dict(_buffers(module))):
            continue
        made = _made_anew(model, module)
        for name, buffer in own.items():
            if not _close(buffer, made.get_buffer(name)):
                found[f"{place}.{name}"] = buffer
    return found


def _close(found: Tensor, expected: Tensor) -> bool:
    """Say whether tensors of one dtype are the same, but for a last bit."""
    info = torch.finfo(found.dtype)
    least = info.tiny * info.eps
    return torch.allclose(found, expected, rtol=max(CLOSE, info.eps), atol=least)


def _buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield a module's own numbers that are not saved, but for what every pass computes anew."""
    for name in sorted(module._non_persistent_buffers_set):
        buffer = module._buffers.get(name)
        if buffer is None or buffer.is_meta or not buffer.is_floating_point():
            continue
        if not _computed_by_passes(module, name):
            yield name, buffer


def _computed_by_passes(module: Any, name: str) -> bool:
    """Say whether a buffer has the frequencies that fit the length of the latest text."""
    if not name.endswith("inv_freq") or name.endswith("original_inv_freq"):
        return False
    kinds = getattr(module, "rope_type", None)
    kind = kinds.get(name.removesuffix("_inv_freq")) if isinstance(kinds, dict) else kinds
    return kind is not None and ("dynamic" in kind or kind == "longrope")


def _made_anew(model: PreTrainedModel, module: nn.Module) -> nn.Module:
    """Return a module with what transformers computes on loading, and no weights.

    A buffer that it does not compute, or not from the config as it is now, is not a number.
    """
    known: dict[int, Any] = {id(model.config): model.config}
    known |= {id(one): nn.Parameter(one.to("meta")) for one in module.parameters()}
    known |= {id(one): torch.full_like(one, torch.nan) for _, one in _buffers(module)}
    made = copy.deepcopy(module, known)
    with suppress(Exception):  # of any type, where the config was edited by hand
        model._init_weights(made)
    return made
