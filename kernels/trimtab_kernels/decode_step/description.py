"""The tensors and the numbers of a decode plan under names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor

from trimtab_kernels.decode_step.plan import Activation, DecodePlan, SiteInput


def described_whole(plan: DecodePlan) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Do what `described` does for all of a plan but its layers."""
    names = [field.name for field in fields(DecodePlan) if field.name != "layers"]
    return described({name: getattr(plan, name) for name in names})


def described(part: Any) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Return the tensors and the numbers of a part under their dotted names; None is left out."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, float] = {}
    for name, value in _flat(part, ""):
        if isinstance(value, Tensor):
            tensors[name] = value.detach()
        else:
            numbers[name] = float(value)
    return tensors, numbers


def _flat(part: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if part is None:
        return
    if isinstance(part, Activation):
        yield prefix, list(Activation).index(part)
    elif isinstance(part, (Tensor, bool, int, float)):
        yield prefix, part
    elif isinstance(part, SiteInput):
        yield from _flat({"norm": part.norm, "selection": part.selection}, prefix)
        transform = {"weight": part.transform, "scale": part.transform_scale}
        yield from _flat(transform, f"{prefix}.transform")
    elif isinstance(part, Mapping):
        for name, value in part.items():
            yield from _flat(value, f"{prefix}.{name}" if prefix else name)
    elif isinstance(part, tuple):
        yield from _flat({str(index): value for index, value in enumerate(part)}, prefix)
    else:
        assert is_dataclass(part)
        yield from _flat({one.name: getattr(part, one.name) for one in fields(part)}, prefix)
