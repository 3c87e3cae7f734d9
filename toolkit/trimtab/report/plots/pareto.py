"""Quality against speed and against memory, with the stacks that no other beats in both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from textwrap import wrap

import numpy as np
from matplotlib.axes import Axes

from trimtab.report.choice import kv_share
from trimtab.report.figures import listed
from trimtab.report.job import Job
from trimtab.report.plots.panel import (
    ACCENT,
    FAINT,
    INK,
    LINE,
    MUTED,
    PAPER,
    SMALL,
    Panel,
    Plot,
    numbers,
)  # fmt: skip
from trimtab.report.plots.places import spread
from trimtab.report.table import cell

FILE = "quality_versus_speed.png"
LETTERS = 22  # of a label's line


@dataclass(frozen=True)
class Trade:
    """What is weighed against quality.

    Attributes
    ----------
    title, axis : str
    value : callable
        Of a job: an estimate and its interval, or None.
    sign : int
        1 where more is better, -1 where less is.
    form : str
    """

    title: str
    axis: str
    value: Callable[[Job], dict[str, float] | None]
    sign: int
    form: str


def _memory(job: Job) -> dict[str, float] | None:
    share = kv_share(job)
    return share and dict.fromkeys(("estimate", "low", "high"), share)  # type: ignore[return-value]


SPEED = Trade(
    "quality against speed", "speedup over the unmodified model (right is better)",
    lambda job: job.get("speed.speedup"), 1, ".2f",
)  # fmt: skip
MEMORY = Trade(
    "quality against KV memory", "KV memory over transformers' (left is better)",
    _memory, -1, ".2f",
)  # fmt: skip


def quality_plot(jobs: Sequence[Job], note: str) -> Plot | None:
    """Return quality against speed, and against KV memory where stacks differ in it."""
    having = [job for job in jobs if job.get("derived.bits_increase") is not None]
    stacks = [job for job in having if job.methods]
    if not stacks:
        return None
    trades = [SPEED]
    if len({kv_share(job) for job in having if kv_share(job)}) > 1:
        trades.append(MEMORY)
    best = [job.label for job in front(having, SPEED) if job.methods]
    if best:
        title = f"Nothing is both faster and closer to the unmodified model than {listed(best)}"
    else:
        title = "No stack is faster than the unmodified model: it is the whole front"
    return Plot(FILE, title, tuple(_panel(having, one) for one in trades), note)


def front(jobs: Sequence[Job], trade: Trade) -> list[Job]:
    """Return the jobs that no other equals or beats in both figures and beats in one.

    The unmodified model, at a ratio of 1 and without a change of quality, is one of the others.
    """
    known = [job for job in jobs if trade.value(job)]
    points = [_point(job, trade) for job in known if job.methods] + [(trade.sign * 1.0, 0.0)]
    return [
        job
        for job, (gain, loss) in ((job, _point(job, trade)) for job in known)
        if job.methods
        and not any(g >= gain and b <= loss and (g > gain or b < loss) for g, b in points)
    ]


def _point(job: Job, trade: Trade) -> tuple[float, float]:
    """Return what is gained, more being better, and what quality is lost."""
    value, lost = trade.value(job), job.get("derived.bits_increase")
    assert value is not None
    return trade.sign * value["estimate"], lost["estimate"]


def _panel(jobs: Sequence[Job], trade: Trade) -> Panel:
    known = [job for job in jobs if trade.value(job)]
    best = front(known, trade)
    lines = sum(len(_wrapped(job)) for job in known)
    height = max(2.6, (LINE + 0.02) * lines + 0.08 * len(known))

    def draw(axes: Axes) -> None:
        _scatter(axes, known, best, trade)
        _labels(axes, known, best, trade, height)

    rows = [
        (
            job.label,
            [
                cell(trade.value(job), trade.form),
                cell(job.get("derived.bits_increase"), "+.1%"),
                cell("yes" if job in best else "no"),
            ],
        )
        for job in known
    ]
    heads = (trade.axis.partition(" (")[0], "change of bits per byte", "on the front")
    table = numbers(trade.title, heads, rows)
    return Panel(
        f"{trade.title} (● on the front)",
        height,
        draw,
        table,
        left=0.62,
        right=1.62,
        bottom=0.5,
    )


def _scatter(axes: Axes, jobs: Sequence[Job], best: Sequence[Job], trade: Trade) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)
    axes.tick_params(length=0, labelsize=7.5, labelcolor=MUTED)
    axes.axhline(0, color=FAINT, linewidth=1)
    axes.axvline(1, color=FAINT, linewidth=1)
    points = sorted((trade.value(job)["estimate"], 100 * job.get("derived.bits_increase.estimate"))  # type: ignore[index]
                    for job in best)  # fmt: skip
    if len(points) > 1:
        places = np.array(points)
        axes.plot(places[:, 0], places[:, 1], color=ACCENT, linewidth=1, linestyle="--")
    for job in jobs:
        value, lost = trade.value(job), job.get("derived.bits_increase")
        assert value is not None
        x, y = value["estimate"], 100 * lost["estimate"]
        axes.errorbar(
            x, y, xerr=[[x - value["low"]], [value["high"] - x]],
            yerr=[[y - 100 * lost["low"]], [100 * lost["high"] - y]],
            fmt="o" if job in best else "s", color=ACCENT, ecolor=MUTED, markersize=5.5,
            markerfacecolor=ACCENT if job in best else PAPER, elinewidth=1, capsize=2,
        )  # fmt: skip
    axes.margins(0.12)
    axes.set_xlabel(trade.axis, fontsize=7.5, color=MUTED)
    axes.set_ylabel("% more bits per byte (lower is better)", fontsize=7.5, color=MUTED)


def _labels(
    axes: Axes, jobs: Sequence[Job], best: Sequence[Job], trade: Trade, height: float
) -> None:
    """Write the labels at the right, from above to below as the points lie, a line to each."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)
    ordered = sorted(jobs, key=lambda job: (-job.get("derived.bits_increase.estimate"),
                                            -trade.value(job)["estimate"]))  # type: ignore[index]  # fmt: skip
    room = [(LINE * len(_wrapped(job)) + 0.08) / height for job in ordered]
    wanted = [
        (100 * job.get("derived.bits_increase.estimate") - low) / (high - low) for job in ordered
    ]
    for job, place in zip(ordered, spread(wanted, room), strict=True):
        value = trade.value(job)
        assert value is not None
        axes.annotate(
            "\n".join(_wrapped(job)),
            (value["estimate"], 100 * job.get("derived.bits_increase.estimate")),
            xytext=(1.04, place), textcoords="axes fraction", va="center", fontsize=SMALL - 1,
            color=INK, fontweight="bold" if job in best else "normal", annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": FAINT, "linewidth": 0.8, "relpos": (0, 0.5)},
        )  # fmt: skip


def _wrapped(job: Job) -> list[str]:
    return wrap(job.label, LETTERS, break_on_hyphens=False)
