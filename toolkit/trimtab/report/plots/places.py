"""Where labels go, so that none covers another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, islice

from matplotlib.axes import Axes

from trimtab.report.plots.panel import FAINT, INK, LINE, SMALL


@dataclass(frozen=True)
class Label:
    """What is written beside the axes for a point in them.

    Attributes
    ----------
    lines : list of str
    place : tuple of float
        The point's.
    bold : bool
    """

    lines: list[str]
    place: tuple[float, float]
    bold: bool

    @property
    def room(self) -> float:
        """Inches that it takes from above to below."""
        return LINE * len(self.lines) + 0.08


def beside(axes: Axes, labels: Sequence[Label], height: float) -> None:
    """Write labels at the right of axes, from above to below as the points lie, a line to each.

    Of points at one height those at the left have the outer places, so that their lines do not
    cross. `height` is that of the axes, in inches.
    """
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)

    def at(label: Label) -> float:
        return round((label.place[1] - low) / (high - low), 2)

    ordered = sorted(labels, key=lambda label: (-at(label), label.place[0]))
    levels = [(middle, [*level]) for middle, level in groupby(ordered, at)]
    shares = [max(label.room for label in level) / height for _, level in levels for _ in level]
    wanted = [middle for middle, level in levels for _ in level]
    places = iter(spread(wanted, shares))
    for middle, level in levels:
        free = sorted(islice(places, len(level)), key=lambda place: -abs(place - middle))
        for label, place in zip(level, free, strict=True):
            axes.annotate(
                "\n".join(label.lines), label.place, xytext=(1.04, place), va="center",
                textcoords="axes fraction", fontsize=SMALL, color=INK, annotation_clip=False,
                fontweight="bold" if label.bold else "normal",
                arrowprops={"arrowstyle": "-", "color": FAINT, "linewidth": 0.8,
                            "relpos": (0, 0.5)},
            )  # fmt: skip


def room(labels: Sequence[Label]) -> float:
    """Return the inches that labels take below each other."""
    return sum(label.room for label in labels)


def spread(wanted: Sequence[float], room: Sequence[float]) -> list[float]:
    """Return places from above to below, near the wanted ones and none within another's room."""
    places: list[float] = []
    edge = 1.05
    for number, (want, size) in enumerate(zip(wanted, room, strict=True)):
        least = sum(room[number + 1 :]) + size / 2 - 0.05  # the others must fit below
        places.append(max(min(want, edge - size / 2), least))
        edge = places[-1] - size / 2
    return places
