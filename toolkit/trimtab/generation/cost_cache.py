"""The costs of steps, kept for a day in the cache folder of the machine that measured them."""

from __future__ import annotations

import json
import socket
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from trimtab.environment import cpu_model, package_versions
from trimtab.files import sha256_of_json, write_json
from trimtab.models.decode_parts import HasSiteInput
from trimtab.models.embedded import cache_folder
from trimtab.vattention.virtual_kv import VirtualKV
from trimtab_kernels.decode_step import cpu

LIFETIME = timedelta(days=1)  # the pages and neighbours of a machine change over the days


@dataclass(frozen=True)
class StepCosts:
    """The time of steps over more and more rows.

    Parameters
    ----------
    relative : tuple of float
        The time of a step over 1, 2, ... rows, over that of a step over one. Rows are tokens that
        a step processes, of one text or of several.
    measured : str or None
        When, in UTC and ISO 8601; None if they are given, not measured.
    seconds : float or None
        What measuring them took.
    """

    relative: tuple[float, ...]
    measured: str | None = None
    seconds: float | None = None

    @property
    def most_rows(self) -> int:
        """The most rows whose time is known."""
        return len(self.relative)

    def of(self, rows: int) -> float:
        """Return the relative time of a step over so many rows."""
        return self.relative[rows - 1]


def subject_of(model: PreTrainedModel, executor: str, kv: VirtualKV, depth: int) -> str:
    """Return a digest of all that decides how long steps over several rows take.

    That is the machine and its threads, the software, and the model as it is now: its modules, the
    shapes of its tensors, and how much its methods skip.

    Parameters
    ----------
    model : PreTrainedModel
    executor : str
        The name of what runs the steps.
    kv : VirtualKV
    depth : int
        Tokens of context.
    """
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    sites = [module.site_input() for module in model.modules() if isinstance(module, HasSiteInput)]
    selections = [site.selection for site in sites if site.selection is not None]
    subject = {
        "host": socket.gethostname(),
        "processor": cpu_model(),
        "gpu": torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "packages": package_versions(),
        "kernels": cpu.LIBRARY.path.name,
        "executor": executor,
        "slots": len(kv.lengths),
        "depth": depth,
        "modules": [type(module).__qualname__ for module in model.modules()],
        "tensors": {name: _outline(tensor) for name, tensor in tensors.items()},
        "selections": [[one.keep, one.threshold, one.dense_prefix] for one in selections],
    }
    return sha256_of_json(subject)


def _outline(tensor: Tensor) -> list[object]:
    return [list(tensor.shape), list(tensor.stride()), str(tensor.dtype), str(tensor.device)]


def kept(subject: str, rows: int) -> StepCosts | None:
    """Return the costs of steps over 1 to `rows` rows; None where they are not known any more."""
    try:
        found = json.loads(_file(subject).read_text("utf-8"))
        times, measured = tuple(map(float, found["relative"])), str(found["measured"])
        costs = StepCosts(times, measured, float(found["seconds"]))
        age = datetime.now(UTC) - datetime.fromisoformat(measured)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    whole = len(times) == rows and times[0] == 1 and list(times) == sorted(times)
    return costs if whole and timedelta(0) <= age < LIFETIME else None


def keep(subject: str, costs: StepCosts) -> None:
    """Keep costs that were measured, where the cache folder can be written."""
    with suppress(OSError):
        file = _file(subject)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, asdict(costs))


def _file(subject: str) -> Path:
    return cache_folder() / "step-costs" / f"{subject}.json"
