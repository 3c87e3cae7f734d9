"""LaRoSA (arXiv 2507.01299): layerwise rotated sparse activation."""

from trimtab.larosa.method import LaRoSA
from trimtab.larosa.settings import (
    Allocation,
    Basis,
    Count,
    Precision,
    Prefill,
    RotationScope,
    Selection,
    Transforms,
)

__all__ = [
    "Allocation",
    "Basis",
    "Count",
    "LaRoSA",
    "Precision",
    "Prefill",
    "RotationScope",
    "Selection",
    "Transforms",
]
