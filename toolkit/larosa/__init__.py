"""LaRoSA (arXiv 2507.01299): layerwise rotated sparse activation."""

from toolkit.larosa.method import LaRoSA, Selection
from toolkit.larosa.rotation import Basis

__all__ = ["Basis", "LaRoSA", "Selection"]
