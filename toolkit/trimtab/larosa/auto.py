"""Settings that are left to calibration, and the candidates to choose from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from trimtab.larosa.settings import Allocation, Basis, LaRoSASettings, Selection, Transforms

S = TypeVar("S", bound=LaRoSASettings)

SELECTIONS = Selection.threshold, Selection.topk
ALLOCATIONS = Allocation.steepest, Allocation.uniform
CHOSEN = "selection", "allocation", "transforms"


def concrete(settings: S) -> list[S]:
    """Return the candidates that settings leave to choose from, those with the defaults first."""
    asked = settings.selection, settings.allocation
    selections = SELECTIONS if asked[0] is Selection.auto else asked[:1]
    allocations = ALLOCATIONS if asked[1] is Allocation.auto else asked[1:]
    return [
        replace(settings, selection=selection, allocation=allocation,
                transforms=_transforms(settings, allocation))
        for allocation in allocations
        for selection in selections
    ]  # fmt: skip


def _transforms(settings: LaRoSASettings, allocation: Allocation) -> Transforms:
    """Return the setting for an allocation; `uniform` cannot tell where a transform pays."""
    if settings.transforms is not Transforms.auto or allocation is not Allocation.uniform:
        return settings.transforms
    return Transforms.none if settings.basis is Basis.none else Transforms.all


def chosen(settings: LaRoSASettings) -> dict[str, str]:
    """Return those of a candidate's settings that calibration may have chosen, by name."""
    return {name: getattr(settings, name).value for name in CHOSEN}


def told(row: Mapping[str, Any]) -> str:
    """Return such settings as they are typed."""
    return " ".join(f"{name}={row[name]}" for name in CHOSEN)
