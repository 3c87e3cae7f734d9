"""All jobs beside each other: one row a job, one panel a figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes

from trimtab.evaluation.display import Chart, Series
from trimtab.report.figures import is_interval, middle, named, number
from trimtab.report.job import Job
from trimtab.report.marks import explained, mark, marked
from trimtab.report.plots.panel import (
    ACCENT,
    INK,
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
from trimtab.report.plots.ranking import better, differs, has, left_out, may_lead, overlap, work
from trimtab.report.table import amount, cell

KEY = "Upright line: the unmodified model, measured beside the stack. "
CHANGED = "the machine was not the same for them"
MEANS = {"more": "more is better", "less": "less is better"}


def comparison(chart: Chart, jobs: Sequence[Job], note: str) -> Plot | None:
    """Return a chart of all jobs, or None where no job has any of its figures."""
    panels = tuple(panel for one in chart.panels if (panel := comparison_panel(one, jobs)))
    key = "" if all(one.origin is not None for one in chart.panels) else KEY
    legend = f"{explanation(chart.panels, jobs)}{key}{note}"
    return Plot(chart.file, finding(chart, jobs), panels, legend) if panels else None


def explanation(panels: Sequence[Series], jobs: Sequence[Job]) -> str:
    """Return what the marks of labels mean, for the note of a plot; empty without any."""
    told = explained(mark(one.field, job, jobs) for one in panels for job in jobs if has(one, job))
    return f"{told} " if told else ""


def finding(chart: Chart, jobs: Sequence[Job]) -> str:
    """Return the title of a chart: the best stack by its first panel that has one.

    It names those, too, that the intervals cannot tell from it. Where the panel's rows do not
    compare with each other, it says which stacks are better than the unmodified model beside them.
    Stacks that are not ranked, and may be the best, are named as such.
    Panels before it in which no stack is better are named.
    """
    if not any(job.methods for job in jobs):
        return "The unmodified model against itself: no stack was measured"
    passed: list[str] = []
    for series in chart.panels:
        leading = better(series, jobs) if series.finding else []
        ranked = [job for job in leading if not mark(series.field, job, jobs)]
        alike = len({work(series, job) for job in jobs if has(series, job)}) == 1
        if leading and not (alike and ranked):
            why = CHANGED if alike else "models, machines, texts or their lengths differ"
            return (
                f"Better than the unmodified model: {_of(leading)} ({series.title}); "
                f"not ranked, as {why}"
            )
        if leading:
            choose = max if series.better == "more" else min
            first = choose(ranked, key=lambda job: middle(job.get(series.field)))
            value = first.get(series.field)
            best = [job for job in ranked if middle(job.get(series.field)) == middle(value)]
            told = number(middle(value), series.form, series.scale)
            title = series.finding.format(best=_of(best), value=told)
            near = [job for job in ranked if job not in best and overlap(job, first, series)]
            apart = [
                job for job in jobs if job not in ranked
                and (job in leading or may_lead(series, job, first, jobs))
            ]  # fmt: skip
            title += f"; cannot be told from it: {_of(near)}" if near else ""
            title += left_out(series.field, apart, jobs)
            return title + "".join(f"; no stack is better in: {one}" for one in passed)
        if series.finding and any(has(series, job) for job in jobs):
            passed.append(series.title)
    return chart.nothing


def _of(jobs: Sequence[Job]) -> str:
    return named([job.label for job in jobs])


def comparison_panel(series: Series, jobs: Sequence[Job]) -> Panel | None:
    """Return one figure of the jobs that have it; None where all have the unmodified model's."""
    having = [job for job in jobs if has(series, job)]
    if all(differs(series, job) is False for job in having):
        return None
    beside = [job.get(series.beside) if series.beside else series.origin for job in having]
    rows = Rows(
        [
            Row(marked(job.label, mark(series.field, job, jobs)), amount(job, series))
            for job in having
        ]
    )

    def draw(axes: Axes) -> None:
        plain(axes)
        rows.label(axes)
        _marks(axes, series, having, beside, rows.marks)

    heads = [series.title, *(["unmodified model"] if series.beside else [])]
    lines = [
        (
            job.label,
            [cell(job.get(series.field), series.form, series.scale),
             *([cell(other, series.form, series.scale)] if series.beside else [])],
        )
        for job, other in zip(having, beside, strict=True)
    ]  # fmt: skip
    title = f"{series.title} ({MEANS[series.better]})"
    return Panel(title, rows.height, draw, numbers(series.title, heads, lines))


def _marks(
    axes: Axes, series: Series, jobs: Sequence[Job], beside: Sequence[Any],
    places: Sequence[float],
) -> None:  # fmt: skip
    scale, ends = series.scale, []
    for job, other, place in zip(jobs, beside, places, strict=True):
        value = job.get(series.field)
        estimate = middle(value) * scale
        face = ACCENT if job.methods else PAPER
        before = middle(other or 0) * scale
        ends += [estimate, before]
        if series.origin is None:
            axes.barh(place, estimate, height=0.13, linewidth=1, color=face, edgecolor=ACCENT)
            if other is not None:
                axes.plot([before] * 2, [place - 0.1, place + 0.1], color=INK, linewidth=1.6)
        else:
            axes.plot([before] * 2, [place - 0.1, place + 0.1], color=MUTED, linewidth=1)
            axes.plot([before, estimate], [place] * 2, color=ACCENT, linewidth=1)
            axes.plot(estimate, place, "o", color=ACCENT, markerfacecolor=face, markersize=5)
        if is_interval(value):
            low, high = value["low"] * scale, value["high"] * scale
            error_bar(axes, value, place, scale)
            ends += [low, high]
    first, last = (min(ends), max(ends)) if series.origin is not None else (0, max(ends))
    margin = 0.03 * (last - first or 1)
    axes.set_xlim(first - margin * (series.origin is not None), last + margin)
    if series.origin is not None:
        origin, room = series.origin * scale, 0.1 * (last - first)
        ticks = [tick for tick in axes.get_xticks() if abs(tick - origin) > room]
        axes.set_xticks(sorted([origin, *(tick for tick in ticks if first <= tick <= last)]))
