"""Which rows of a panel are ranked, by what was measured of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trimtab.evaluation.display import Series
from trimtab.report.balance import NOTICED
from trimtab.report.figures import is_interval, middle, named
from trimtab.report.job import Job
from trimtab.report.marks import TIMED, judged, mark
from trimtab.report.verdict import ALIKE, FASTER, NOISY, setting, verdict


def has(series: Series, job: Job) -> bool:
    return job.get(series.field) is not None


def differs(series: Series, job: Job) -> bool | None:
    """Return whether what was counted is not the unmodified model's; None of what was measured."""
    value, other = job.get(series.field), job.get(series.beside) if series.beside else None
    return None if other is None or is_interval(value) else bool(value != other)


def work(series: Series, job: Job) -> tuple[Any, ...]:
    """Return what rows must share for a figure of theirs to be ranked."""
    if "serving" not in series.field:
        return *setting(job), job.get("tokens.baseline")
    servers = job.get("serving.servers") or ()
    lengths = [
        (one["requests"], one["prompt_bytes"], one["bytes"])
        for one in job.get("samples.serving_requests") or ()
    ]
    return *setting(job), *sorted({one["requests"] for one in servers}), *sorted(lengths)


def better(series: Series, jobs: Sequence[Job]) -> list[Job]:
    """Return the stacks whose figure is better than the baseline's."""
    return [job for job in jobs if job.methods and _beats(series, job, jobs)]


def may_lead(series: Series, job: Job, first: Job, jobs: Sequence[Job]) -> bool:
    """Return whether noise hides if a stack is better than the best of those that are ranked."""
    if not (job.methods and series.field.startswith(TIMED) and has(series, job)):
        return False
    mine, best = job.get(series.field), first.get(series.field)
    reaches = (
        _end(mine, "high") >= _end(best, "low")
        if series.better == "more"
        else _end(mine, "low") <= _end(best, "high")
    )
    return reaches and judged(series.field, job, jobs) in (NOISY, ALIKE)


def left_out(field: str, among: Sequence[Job], jobs: Sequence[Job]) -> str:
    """Return why rows are not in a title's ranking, and which: the end of the title."""
    found: dict[str, list[str]] = {}
    for job in among:
        found.setdefault(mark(field, job, jobs) or ALIKE, []).append(job.label)
    return "".join(f"; {why}: {named(labels)}" for why, labels in found.items())


def _end(value: Any, name: str) -> float:
    return float(value[name] if is_interval(value) else value)


def overlap(one: Job, other: Job, series: Series) -> bool:
    """Return whether two figures have intervals, and these have values in common."""
    mine, theirs = one.get(series.field), other.get(series.field)
    if not (is_interval(mine) and is_interval(theirs)):
        return False
    return bool(mine["low"] <= theirs["high"] and theirs["low"] <= mine["high"])


def _beats(series: Series, job: Job, jobs: Sequence[Job]) -> bool:
    value = job.get(series.field)
    other = job.get(series.beside) if series.beside else series.origin
    if value is None or other is None:
        return False
    before, after = middle(other), middle(value)
    change = after - before if series.better == "more" else before - after
    if series.field.startswith("speed."):
        return change > 0 and verdict(job, jobs) == FASTER
    return change > NOTICED * abs(before)
