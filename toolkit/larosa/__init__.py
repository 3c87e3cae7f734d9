"""LaRoSA (arXiv 2507.01299): layerwise rotated sparse activation."""

from toolkit.larosa.method import Basis, LaRoSA, Selection

__all__ = ["Basis", "LaRoSA", "Selection"]
