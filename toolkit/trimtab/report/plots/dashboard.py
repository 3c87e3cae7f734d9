"""Eight panels that say it all: the figures people ask for, and which stack to use when."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes

from trimtab.report.choice import Choice
from trimtab.report.columns import CHARTS, DASHBOARD, DASHBOARD_PANELS
from trimtab.report.figures import interval
from trimtab.report.job import Job
from trimtab.report.plots.comparison import KEY, comparison_panel, finding
from trimtab.report.plots.panel import Panel, Plot, Row, Rows, numbers
from trimtab.report.table import cell

NONE_FITS = "none: the unmodified model"


def dashboard(jobs: Sequence[Job], found: Sequence[Choice], note: str) -> Plot:
    """Return the overview of all jobs, without the panels that would be empty."""
    panels = [panel for one in DASHBOARD_PANELS if (panel := comparison_panel(one, jobs))]
    return Plot(
        DASHBOARD, finding(CHARTS[0], jobs), (*panels, _summary(found)), KEY + note, columns=4
    )


def _summary(found: Sequence[Choice]) -> Panel:
    stacks = [choice.best.label if choice.best else NONE_FITS for choice in found]
    told = [interval(choice.best.get("speed.speedup"), ".2f") if choice.best else ""
            for choice in found]  # fmt: skip
    both = [row for choice, stack, speed in zip(found, stacks, told, strict=True)
            for row in (Row(f"{choice.rule.wish}:", mark=0), Row(f"→ {stack}", speed))]  # fmt: skip
    lines = Rows(both)

    def draw(axes: Axes) -> None:
        axes.set_axis_off()
        lines.label(axes)

    cells = [(choice.rule.wish, [cell(stack), cell(speed or None)])
             for choice, stack, speed in zip(found, stacks, told, strict=True)]  # fmt: skip
    table = numbers("which stack to use", ("use", "speedup"), cells)
    return Panel("summary: which stack to use, and its speedup", lines.height, draw, table)
