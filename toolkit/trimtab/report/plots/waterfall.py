"""From the unmodified model to a stack, one method at a time, and what they do to each other."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes

from trimtab.report.attribution import TOGETHER, Attribution, Effect
from trimtab.report.figures import listed, number
from trimtab.report.marks import explained, marked
from trimtab.report.plots.panel import (
    ACCENT,
    MUTED,
    PAPER,
    Panel,
    Plot,
    Row,
    Rows,
    error_bar,
    numbers,
    plain,
)
from trimtab.report.table import Cell, cell

FILE = "ablation_waterfall.png"
KEY = (
    "Filled: less. Hatched: more. A time ends at the unmodified model's over the speedup, which is "
    "what is typical of pairs; the stack's own time in tables is what is typical of one "
    "generation, and may differ a little. "
)
SEEN = 0.2  # smaller changes, as a share, are drawn on an axis that does not begin at 0


def waterfall_plot(found: Sequence[Attribution], note: str) -> Plot | None:
    """Return the largest stacks of which every method was measured alone, one row each."""
    whole = [one for one in found if one.steps]
    if not whole:
        return None
    most = max(len(one.whole.methods) for one in whole)
    shown = [one for one in whole if len(one.whole.methods) == most]
    first = shown[0]
    marks = explained(step.mark for one in shown for step in one.steps)
    legend = f"{marks} {KEY}{note}".lstrip()
    return Plot(FILE, _title(first), tuple(_panel(one, len(shown)) for one in shown), legend)


def _title(one: Attribution) -> str:
    """Say what methods do for a figure, and what the interaction is, where intervals tell."""
    together = next(effect for effect in one.steps if effect.kind == TOGETHER)
    single = _single([effect for effect in one.steps if effect.kind != TOGETHER],
                     one.metric.name.split(",")[0])  # fmt: skip
    if together.mark:
        beyond = f"what they do to each other cannot be said ({together.mark})"
    elif together.low is None or together.high is None:
        beyond = "what they do to each other has no interval"
    elif together.low <= 0 <= together.high:
        ends = f"{one.metric.told(together.low)} to {one.metric.told(together.high)}"
        beyond = f"what they do to each other cannot be told from noise ({ends})"
    elif together.high < 0:
        beyond = "together they do more than one by one"
    else:
        beyond = "together they do less than one by one"
    return f"{marked(one.whole.label, one.mark)}: {single}; {beyond}"


def _single(alone: Sequence[Effect], figure: str) -> str:
    """Say which method lowers a figure most; which ones lower it, where that cannot be told.

    Effects that are marked do not count.
    """
    most, *others = sorted(alone, key=lambda effect: effect.change)
    lowering = [one.method for one in alone if not one.mark and _ends(one)[1] < 0]
    clear = all(not one.mark and _ends(most)[1] < _ends(one)[0] for one in others)
    if most.method in lowering and clear:
        return f"{most.method} does most for {figure}"
    if lowering:
        return f"{listed(lowering)} alone lower{'s' * (len(lowering) == 1)} {figure}"
    if all(not effect.mark and _ends(effect)[0] >= 0 for effect in alone):
        return f"no method alone lowers {figure}"
    return f"whether a method alone lowers {figure} cannot be told from noise"


def _ends(effect: Effect) -> tuple[float, float]:
    """Return the interval of an effect; of one that was counted, the effect twice."""
    if effect.low is None or effect.high is None:
        return effect.change, effect.change
    return effect.low, effect.high


def _panel(one: Attribution, several: int) -> Panel:
    form = one.metric.form
    rows = Rows([
        Row("unmodified model", number(one.start, form)),
        *(Row(_name(effect), one.metric.told(effect.change)) for effect in one.steps),
        Row(marked(one.whole.label, one.mark), number(one.end, form)),
    ])  # fmt: skip

    def draw(axes: Axes) -> None:
        plain(axes)
        rows.label(axes)
        _bars(axes, one, rows.marks)

    title = f"{one.metric.name} ({one.whole.label})" if several > 3 else one.metric.name
    lines = [
        ("unmodified model", [cell(one.start, form), cell(None), cell(None)]),
        *(
            (_name(effect),
             [cell(at, form), cell(one.metric.told(effect.change)), _interval(one, effect)])
            for effect, (_, at) in zip(one.steps, _path(one), strict=True)
        ),
        (one.whole.label, [cell(one.end, form), cell(None), cell(None)]),
    ]  # fmt: skip
    table = numbers(one.metric.name, (one.metric.name, "change", "95 % interval"), lines, "step")
    return Panel(title, rows.height, draw, table)


def _bars(axes: Axes, one: Attribution, places: Sequence[float]) -> None:
    ends = [end for step in _path(one) for end in step]
    from_zero = max(ends) - min(ends) > SEEN * max(ends) or max(ends) == min(ends)
    for effect, (before, after), place in zip(one.steps, _path(one), places[1:], strict=False):
        better = after <= before
        axes.barh(
            place, after - before, left=before, height=0.13, linewidth=1, edgecolor=ACCENT,
            color=ACCENT if better else PAPER, hatch=None if better else "/////",
        )  # fmt: skip
        axes.plot([before] * 2, [place - 0.42, place + 0.07], color=MUTED, linewidth=0.7)
        if effect.low is not None and effect.high is not None:
            low, high = one.metric.value(before, effect.low), one.metric.value(before, effect.high)
            error_bar(axes, {"estimate": after, "low": low, "high": high}, place)
            ends += [low, high]
    for value, place, face in ((one.start, places[0], PAPER), (one.end, places[-1], ACCENT)):
        if from_zero:
            axes.barh(place, value, height=0.13, color=face, edgecolor=ACCENT, linewidth=1)
        else:
            axes.plot(value, place, "o", color=ACCENT, markerfacecolor=face, markersize=5.5)
    low = 0 if from_zero else min(ends) - 0.1 * (max(ends) - min(ends))
    axes.set_xlim(low, max(ends) + 0.05 * (max(ends) - low))


def _path(one: Attribution) -> list[tuple[float, float]]:
    """Return where each step begins and ends."""
    path, at = [], one.start
    for effect in one.steps:
        path.append((at, one.metric.value(at, effect.change)))
        at = path[-1][1]
    return path


def _name(effect: Effect) -> str:
    name = f"{effect.method} alone" if effect.method else "interaction of them all"
    return marked(name, effect.mark)


def _interval(one: Attribution, effect: Effect) -> Cell:
    if effect.low is None or effect.high is None:
        return cell(None)
    return cell(f"{one.metric.told(effect.low)} to {one.metric.told(effect.high)}")
