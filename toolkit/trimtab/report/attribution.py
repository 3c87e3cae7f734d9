"""What each method of a stack does alone, in the stack, and what the stack has beyond them all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from trimtab.report.effects import METRICS, Metric, Terms
from trimtab.report.job import Job
from trimtab.report.labels import commit, overrides, settings
from trimtab.report.marks import mark
from trimtab.report.verdict import setting

ALONE, IN_STACK, TOGETHER = "alone", "in the stack", "interaction"


@dataclass(frozen=True)
class Effect:
    """A change of one metric, on the scale of `trimtab.report.effects`.

    Attributes
    ----------
    kind : str
        What a method does `alone`; what it adds `in the stack` to all the others; or the
        `interaction`, what the whole has beyond the sum of what its methods do alone.
    method : str
        Empty for an interaction.
    change : float
    low, high : float or None
        Its 95 % interval; None where no samples say.
    mark : str
        Why it does not count, see `trimtab.report.marks`, by the jobs it is computed from; empty
        where it does.
    """

    kind: str
    method: str
    change: float
    low: float | None
    high: float | None
    mark: str = ""


@dataclass(frozen=True)
class Attribution:
    """The effects on one metric in one stack.

    Attributes
    ----------
    whole : Job
        The stack, of two methods or more.
    metric : Metric
    start, end : float
        The metric of the unmodified model, measured beside the whole, and what the whole makes of
        it.
    effects : tuple of Effect
        Those that the stacks which were measured can tell.
    mark : str
        That of the whole.
    """

    whole: Job
    metric: Metric
    start: float
    end: float
    effects: tuple[Effect, ...]
    mark: str = ""

    @property
    def steps(self) -> tuple[Effect, ...]:
        """What leads from `start` to `end`; empty where a method was not measured alone."""
        found = tuple(one for one in self.effects if one.kind != IN_STACK)
        return found if any(one.kind == TOGETHER for one in found) else ()


def attributions(rows: Sequence[Job]) -> list[Attribution]:
    """Return the effects in every stack of two methods or more, largest stacks first."""
    found = []
    for whole in wholes(rows):
        for metric in METRICS:
            change, start = metric.change(whole), metric.start(whole)
            if change is None or start is None:
                continue
            effects = tuple(_effects(whole, metric, rows))
            end = metric.value(start, change)
            own = mark(metric.field, whole, rows)
            found.append(Attribution(whole, metric, start, end, effects, own))
    return found


def wholes(rows: Sequence[Job]) -> list[Job]:
    """Return the stacks of two methods or more, largest first."""
    several = [row for row in rows if row.ok and len(row.methods) > 1]
    return sorted(several, key=lambda row: -len(row.methods))


def missing(whole: Job, rows: Sequence[Job]) -> list[tuple[str, ...]]:
    """Return the stacks that would have to be measured too: singles, and the whole but for one."""
    parts = [*combinations(whole.methods, 1), *combinations(whole.methods, len(whole.methods) - 1)]
    return [part for part in dict.fromkeys(parts) if part_of(whole, part, rows) is None]


def _effects(whole: Job, metric: Metric, rows: Sequence[Job]) -> Iterable[Effect]:
    singles = {method: part_of(whole, (method,), rows) for method in whole.methods}
    for method, single in singles.items():
        if single is not None:
            yield from _effect(ALONE, method, metric, [(1, single)], rows)
    for method in whole.methods:
        rest = part_of(whole, tuple(one for one in whole.methods if one != method), rows)
        if rest is not None:
            yield from _effect(IN_STACK, method, metric, [(1, whole), (-1, rest)], rows)
    alone = [(-1, single) for single in singles.values() if single is not None]
    if len(alone) == len(singles):
        yield from _effect(TOGETHER, "", metric, [(1, whole), *alone], rows)


def _effect(
    kind: str, method: str, metric: Metric, terms: Terms, rows: Sequence[Job]
) -> Iterable[Effect]:
    changes = [metric.change(job) for _, job in terms]
    if any(change is None for change in changes):
        return
    pairs = zip(terms, changes, strict=True)
    change = sum(sign * part for (sign, _), part in pairs if part is not None)
    low, high = metric.interval(terms) or (None, None)
    marks = dict.fromkeys(mark(metric.field, job, rows) for _, job in terms)
    yield Effect(kind, method, change, low, high, ", ".join(filter(None, marks)))


def part_of(whole: Job, methods: tuple[str, ...], rows: Sequence[Job]) -> Job | None:
    """Return the row with these methods of a stack, and all else alike; nearest first."""
    mine = _settings(whole, methods)
    alike = [
        row
        for row in rows
        if row.ok and set(row.methods) == set(methods)
        and setting(row) == setting(whole) and _settings(row, methods) == mine
    ]  # fmt: skip
    alike.sort(key=lambda row: (row.root != whole.root, commit(row) != commit(whole)))
    return alike[0] if alike else None


def _settings(job: Job, methods: Sequence[str]) -> Any:
    """Return the settings of everything but the stack and methods that are not among these."""
    kept = []
    for one in [*overrides(job), *settings(job)]:
        head, _, rest = one.partition("=")[0].partition(".")
        if head == "methods" and rest.partition(".")[0] not in methods:
            continue
        kept.append(one)
    return sorted(kept), job.seeds or job.get("environment.seed")
