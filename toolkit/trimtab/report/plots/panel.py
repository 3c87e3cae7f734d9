"""A plot as data: a title that says what was found, and panels of one width.

One PNG holds all panels; for HTML each panel is an SVG of its own, so that they flow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from trimtab.report.figures import code
from trimtab.report.table import Cell, Table

WIDTH = 4.2  # inches of a panel, where its plot says nothing else
LINE, MARK, GAP = 0.15, 0.17, 0.13  # inches: a line of text, what is drawn below it, between rows
INK, MUTED, ACCENT, FAINT = "#16202b", "#5f6b7a", "#1f5f8b", "#d5dbe1"
PAPER = "#ffffff"
SMALL = 8.5  # points
BEHIND = {"facecolor": PAPER, "edgecolor": "none", "pad": 0.6}  # no line runs through a label


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes
    ----------
    title : str
    height : float
        Of the axes, in inches.
    draw : callable
        Draws into empty axes.
    table : Table
        The numbers that are drawn.
    left, right, bottom : float
        Inches beside and below the axes.
    """

    title: str
    height: float
    draw: Callable[[Axes], None]
    table: Table
    left: float = 0.02
    right: float = 0.06
    bottom: float = 0.3


@dataclass(frozen=True)
class Plot:
    """A picture for a slide.

    Attributes
    ----------
    file : str
        Name of the PNG.
    title : str
        What it shows, found by the figures.
    panels : tuple of Panel
    note : str
        What was measured on what, in small print.
    columns : int
        Panels beside each other in the PNG, at most.
    width : float
        Of every panel, in inches.
    """

    file: str
    title: str
    panels: tuple[Panel, ...]
    note: str
    columns: int = 3
    width: float = WIDTH

    @property
    def alt(self) -> str:
        """What the picture says to those who cannot see it."""
        return f"{self.title}. {'; '.join(panel.title for panel in self.panels)}."


@dataclass(frozen=True)
class Row:
    """A labelled row of a panel.

    Attributes
    ----------
    told : str
        What is written at the right of the label.
    mark : float
        Inches that are left for what is drawn below it.
    heads : bool
        Whether it is the heading of the rows below.
    """

    label: str
    told: str = ""
    mark: float = MARK
    heads: bool = False


class Rows:
    """Labelled rows below each other: a label above, a mark below it.

    The axes' vertical unit is an inch, from the top.
    """

    LETTERS, LEAST = 36, 12  # of a label's line
    WHOLE, BOLD = 70, 1.2  # letters of a whole line, and how many of them a bold letter takes

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows
        self._lines = [wrap(row.label, self._letters(row), break_on_hyphens=False) for row in rows]
        self.marks: list[float] = []
        top = 0.02
        self._tops: list[float] = []
        for row, lines in zip(rows, self._lines, strict=True):
            self._tops.append(top)
            self.marks.append(top + LINE * len(lines) + row.mark / 2)
            top += LINE * len(lines) + row.mark + (GAP if row.mark else LINE / 4)
        self.height = top

    def _letters(self, row: Row) -> int:
        """Return how many letters of a label what is written at its right leaves room for."""
        room = int(self.WHOLE - self.BOLD * len(row.told))
        return max(self.LEAST, min(self.LETTERS, room))

    def label(self, axes: Axes) -> None:
        """Write the labels, and take the vertical axis for the rows."""
        axes.set_ylim(self.height, 0)
        axes.set_yticks([])
        place = axes.get_yaxis_transform()
        for row, lines, top in zip(self._rows, self._lines, self._tops, strict=True):
            style: dict[str, Any] = {
                "transform": place,
                "va": "top",
                "fontsize": SMALL,
                "color": INK,
                "bbox": BEHIND,
            }
            weight = "bold" if row.heads else "normal"
            for number, line in enumerate(lines):
                axes.text(0, top + LINE * number, line, fontweight=weight, **style)
            axes.text(1, top, row.told, ha="right", fontweight="bold", **style)


def plain(axes: Axes) -> None:
    """Leave of the frame and the ticks what a reader needs."""
    for side in axes.spines.values():
        side.set_visible(False)
    axes.tick_params(length=0, labelsize=7.5, labelcolor=MUTED, pad=3)
    axes.grid(axis="x", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter("{x:,g}")


def error_bar(axes: Axes, value: Mapping[str, float], place: float, scale: float = 1) -> None:
    """Draw an interval along the x axis."""
    middle, low, high = (value[name] * scale for name in ("estimate", "low", "high"))
    axes.errorbar(middle, place, xerr=[[middle - low], [high - middle]], color=INK, capsize=2.5,
                  linewidth=1.2, fmt="none")  # fmt: skip


def framed(axes: Axes) -> None:
    """Leave a faint axis at the left and below, for points."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)
    axes.tick_params(length=0, labelsize=7.5, labelcolor=MUTED)


def numbers(
    title: str, heads: Sequence[str], rows: Sequence[tuple[str, Sequence[Cell]]], of: str = "stack"
) -> Table:
    """Return the table of what is drawn: a label and its cells in every row."""
    lines = tuple((Cell(code(label), label), *cells) for label, cells in rows)
    return Table(title, (of, *heads), lines)
