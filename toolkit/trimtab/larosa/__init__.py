"""LaRoSA (arXiv 2507.01299): layerwise rotated sparse activation."""

from trimtab.larosa.bases import Basis
from trimtab.larosa.method import LaRoSA
from trimtab.larosa.precision import Precision
from trimtab.larosa.residual import Share
from trimtab.larosa.selection import Prefill, Selection
from trimtab.larosa.settings import Allocation, Count, Transforms

__all__ = [
    "Allocation",
    "Basis",
    "Count",
    "LaRoSA",
    "Precision",
    "Prefill",
    "Selection",
    "Share",
    "Transforms",
]
