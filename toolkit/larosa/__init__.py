"""LaRoSA (arXiv 2507.01299): layerwise rotated sparse activation."""

from toolkit.larosa.bases import Basis
from toolkit.larosa.method import LaRoSA
from toolkit.larosa.precision import Precision
from toolkit.larosa.residual import Share
from toolkit.larosa.selection import Prefill, Selection
from toolkit.larosa.settings import Allocation, Count, Transforms

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
