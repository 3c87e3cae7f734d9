"""Eight panels that say it all: the figures people ask for, and which stack to use when."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes

from trimtab.evaluation.metrics.latency import SPEEDUPS
from trimtab.report.choice import Choice
from trimtab.report.columns import DASHBOARD, DASHBOARD_PANELS
from trimtab.report.job import Job
from trimtab.report.plots.comparison import KEY, comparison_panel, explanation, finding
from trimtab.report.plots.panel import Panel, Plot, Row, Rows, numbers
from trimtab.report.table import cell
from trimtab.report.verdict import NOISY

NONE_FITS = "none: the unmodified model"


Group = tuple[str, Sequence[Choice]]  # what rows that compare are of, and what to choose of them


def dashboard(jobs: Sequence[Job], found: Sequence[Group], note: str) -> Plot:
    """Return the overview of all jobs, without the panels that would be empty."""
    panels = [panel for one in DASHBOARD_PANELS if (panel := comparison_panel(one, jobs))]
    legend = f"{explanation(DASHBOARD_PANELS, jobs)}{KEY}{note}"
    return Plot(DASHBOARD, finding(SPEEDUPS, jobs), (*panels, _summary(found)), legend, columns=4)


def _summary(found: Sequence[Group]) -> Panel:
    """Return a panel of words; several groups have a heading each."""
    several = len(found) > 1
    rows, cells = [], []
    for name, chosen in found:
        rows += [Row(name, mark=0, heads=True)] * several
        if not chosen:
            rows.append(Row("no stack is recommended: the weights are random", mark=0))
            cells.append((name, [cell("none: the weights are random"), cell(None)]))
        for choice in chosen:
            wish = choice.rule.wish
            stack, figure = _said(choice), choice.figure
            rows += [Row(f"{wish}:", mark=0), Row(f"→ {stack}", figure)]
            cells.append((f"{name}: {wish}" if several else wish, [cell(stack), cell(figure)]))
    lines = Rows(rows)

    def draw(axes: Axes) -> None:
        axes.set_axis_off()
        lines.label(axes)

    table = numbers("which stack to use", ("use", "times as fast"), cells, "wish")
    title = "summary: which stack to use, times as fast"
    return Panel(title, lines.height, draw, table)


def _said(choice: Choice) -> str:
    """Return which stack meets a wish, or why none is named."""
    if choice.best is not None:
        return choice.best.label
    if not choice.measured:
        return "not measured"
    if choice.noisy:
        return NOISY
    return "not ranked" if choice.apart else NONE_FITS
