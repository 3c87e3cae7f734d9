"""Quality against speed and against memory, with the stacks that no other beats in both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from textwrap import wrap

from matplotlib.axes import Axes

from trimtab.report.figures import listed
from trimtab.report.job import Job
from trimtab.report.marks import explained, mark, marked
from trimtab.report.plots.panel import (
    ACCENT,
    FAINT,
    MUTED,
    PAPER,
    SMALL,
    Panel,
    Plot,
    framed,
    numbers,
)  # fmt: skip
from trimtab.report.plots.places import Label, beside, room
from trimtab.report.plots.ranking import left_out
from trimtab.report.rules import ONE_TEXT, SAME, TOGETHER, kv_share
from trimtab.report.table import cell
from trimtab.report.verdict import groups_of, setting

FILE = "quality_versus_speed.png"
LETTERS = 24  # of a label's line
WIDE = 5.2  # inches of a panel, whose labels are at the right


@dataclass(frozen=True)
class Trade:
    """What is weighed against quality.

    Attributes
    ----------
    title, axis : str
    field : str
        Dotted name of what is weighed.
    value : callable
        Of a job: an estimate and its interval, or None.
    sign : int
        1 where more is better, -1 where less is.
    """

    title: str
    axis: str
    field: str
    value: Callable[[Job], dict[str, float] | None]
    sign: int


@dataclass(frozen=True)
class Point:
    """A job in a panel.

    Attributes
    ----------
    value, lost : dict
        What is weighed, and the change of bits per byte, each with its interval.
    mark : str
        Why it is not ranked, see `trimtab.report.marks`; empty where it is.
    """

    job: Job
    value: dict[str, float]
    lost: dict[str, float]
    mark: str

    @property
    def loss(self) -> float:
        """The change of bits per byte, without what is rounding."""
        change = self.lost["estimate"]
        return change if abs(change) >= SAME else 0.0

    @property
    def place(self) -> tuple[float, float]:
        """Where it lies in a panel."""
        return self.value["estimate"], 100 * self.lost["estimate"]


SPEED = Trade(
    "quality against speed",
    "speedup over the unmodified model (right is better)",
    "speed.speedup",
    lambda job: job.get("speed.speedup"),
    1,
)


def _memory(title: str, held: str) -> Trade:
    def value(job: Job) -> dict[str, float] | None:
        share = kv_share(job, held)
        return None if share is None else dict.fromkeys(("estimate", "low", "high"), share)

    axis = "KV memory over transformers' (left is better)"
    return Trade(f"quality against KV memory {title}", axis, held, value, -1)


MEMORY = _memory("of one text", ONE_TEXT)
SERVED = _memory("of many requests", TOGETHER)


def quality_plot(jobs: Sequence[Job], note: str) -> Plot | None:
    """Return quality against speed, and against KV memory where stacks differ in it."""
    stacks = [point for point in _points(jobs, SPEED) if point.job.methods]
    if not stacks:
        return None
    trades = [SPEED, *(one for one in (MEMORY, SERVED) if _differ(_points(jobs, one)))]
    leading = front(jobs, SPEED)
    points = [point for point in stacks if point.job in leading]
    best = [point.job.label for point in points]
    apart = [point.job for point in stacks if point.mark and not _behind(point, points)]
    if best:
        of = " of the same model, text and machine" if len(groups_of(jobs)) > 1 else ""
        title = f"Nothing{of} is both faster and better in bits per byte than {listed(best)}"
    else:
        ranked = " that is ranked" if apart else ""
        title = f"No stack{ranked} is faster than the unmodified model: it is the whole front"
    title += left_out(SPEED.field, apart, jobs)
    legend = f"{explained(point.mark for point in stacks)} {note}".lstrip()
    panels = tuple(_panel(_points(jobs, one), one) for one in trades)
    return Plot(FILE, title, panels, legend, columns=2, width=WIDE)


def front(jobs: Sequence[Job], trade: Trade) -> list[Job]:
    """Return the stacks that no other equals or beats in both figures and beats in one.

    The others are those of the same model, text and machine, and the unmodified model, at a ratio
    of 1 and without a change of quality.
    """
    found = []
    for group in groups_of(jobs):
        points = [point for point in _points(group, trade) if point.job.methods and not point.mark]
        places = [(trade.sign * point.value["estimate"], point.loss) for point in points]
        others = [*places, (trade.sign * 1.0, 0.0)]
        for point, (gain, loss) in zip(points, places, strict=True):
            if not any(g >= gain and b <= loss and (g, b) != (gain, loss) for g, b in others):
                found.append(point.job)
    return found


def _behind(point: Point, ranked: Sequence[Point]) -> bool:
    """Return whether a stack that is not ranked is beaten in speed even at its interval's end."""
    return any(
        other.value["estimate"] >= point.value["high"] and other.loss <= point.loss
        for other in ranked
        if setting(other.job) == setting(point.job)
    )


def _points(jobs: Sequence[Job], trade: Trade) -> list[Point]:
    found = []
    for job in jobs:
        value, lost = trade.value(job), job.get("derived.bits_increase")
        if value is not None and lost is not None:
            found.append(Point(job, value, lost, mark(trade.field, job, jobs)))
    return found


def _differ(points: Sequence[Point]) -> bool:
    return len({point.value["estimate"] for point in points}) > 1


def _panel(points: Sequence[Point], trade: Trade) -> Panel:
    best = front([point.job for point in points], trade)
    labels = _labels(points, best)
    height = max(3.0, 1.1 * room(labels))

    def draw(axes: Axes) -> None:
        _scatter(axes, points, best, trade)
        beside(axes, labels, height)

    rows = [
        (
            point.job.label,
            [
                cell(point.value, ".2f"),
                cell(point.lost, "+.1%"),
                cell("yes" if point.job in best else "no"),
            ],
        )
        for point in points
    ]
    heads = (trade.axis.partition(" (")[0], "change of bits per byte", "on the front")
    title = f"{trade.title} (● on the front)"
    table = numbers(trade.title, heads, rows)
    return Panel(title, height, draw, table, left=0.62, right=1.7, bottom=0.5)


def _scatter(axes: Axes, points: Sequence[Point], best: Sequence[Job], trade: Trade) -> None:
    framed(axes)
    axes.axhline(0, color=FAINT, linewidth=1)
    axes.axvline(1, color=FAINT, linewidth=1)
    for group in groups_of(best):
        line = sorted(point.place for point in points if point.job in group)
        axes.plot(*zip(*line, strict=True), color=ACCENT, linewidth=1, linestyle="--")
    for point in points:
        x, y = point.place
        on_front = point.job in best
        axes.errorbar(
            x, y, xerr=[[x - point.value["low"]], [point.value["high"] - x]],
            yerr=[[y - 100 * point.lost["low"]], [100 * point.lost["high"] - y]],
            fmt="o" if on_front else "s", color=ACCENT, ecolor=MUTED, markersize=5.5,
            markerfacecolor=ACCENT if on_front else PAPER, elinewidth=1, capsize=2,
        )  # fmt: skip
    axes.margins(0.12)
    axes.set_xlabel(trade.axis, fontsize=SMALL, color=MUTED)
    axes.set_ylabel("% more bits per byte (lower is better)", fontsize=SMALL, color=MUTED)


def _labels(points: Sequence[Point], best: Sequence[Job]) -> list[Label]:
    """Return a label for all points that a reader sees at one place."""
    found: dict[tuple[float, float, bool], list[Point]] = {}
    for point in points:
        x, y = point.place
        found.setdefault((round(x, 2), round(y, 1), point.job in best), []).append(point)
    labels = []
    for (_, _, leading), alike in found.items():
        told = ", ".join(marked(point.job.label, point.mark) for point in alike)
        lines = wrap(told, LETTERS, break_on_hyphens=False)
        labels.append(Label(lines, alike[0].place, leading))
    return labels
