"""Which stack to use when, by rules that the report states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trimtab.report.figures import interval
from trimtab.report.job import Job
from trimtab.report.notices import moved
from trimtab.report.rules import RULES, Rule, kv_share, same_text
from trimtab.report.verdict import ALIKE, FASTER, NOISY


@dataclass(frozen=True)
class Choice:
    """What a rule says of some rows.

    Attributes
    ----------
    rule : Rule
    best : Job or None
        The best row.
    equal : tuple of Job
        Those that the intervals cannot tell from it.
    noisy : tuple of Job
        Those whose measurement was too noisy to say, and that may be better than the best row.
    unclear : tuple of Job
        Those that may be better than the best row, though they were not found to differ from the
        unmodified model.
    apart : tuple of Job
        Those that meet the wish and are not ranked, as the machine was not the same for them.
    lacking : str or None
        What decides and no row has.
    """

    rule: Rule
    best: Job | None
    equal: tuple[Job, ...]
    noisy: tuple[Job, ...]
    unclear: tuple[Job, ...]
    apart: tuple[Job, ...]
    lacking: str | None

    @property
    def measured(self) -> bool:
        return self.lacking is None

    @property
    def figure(self) -> str:
        """What the best row is best at, as a number; empty without one."""
        if self.best is None:
            return ""
        if self.rule.figure is None:
            return f"{kv_share(self.best, self.rule.held):.0%} of the memory"
        return interval(self.best.get(self.rule.figure), ".2f")


def choices(rows: Sequence[Job]) -> list[Choice]:
    """Return one choice a rule among rows of one model, text and machine.

    There is none where its weights are random.
    """
    if any(row.random_weights for row in rows):
        return []
    found = []
    elsewhere = [row for row in rows if moved(row, rows)]
    for rule in RULES:
        admitted = [row for row in rows if row.ok and row.methods and rule.admits(row, rows)]
        said = [rule.judged(row, rows) if rule.judged else FASTER for row in admitted]
        fit = [row for row, one in zip(admitted, said, strict=True) if one == FASTER]
        noisy, unclear = (
            [row for row, one in zip(admitted, said, strict=True) if one == kind]
            for kind in (NOISY, ALIKE)
        )
        apart = tuple(row for row in fit if rule.figure and row in elsewhere)
        fit = [row for row in fit if row not in apart]
        best = max(fit, key=rule.value, default=None)
        equal = [] if best is None else _equal(best, fit, rule)
        alike = [row for row in equal if same_text(row)]
        if best is not None and rule.figure and alike and not same_text(best):
            best = max(alike, key=rule.value)
            equal = _equal(best, fit, rule)
        stacks = [row for row in rows if row.methods] or rows
        unmet = best is None and not noisy and not apart
        lacking = _lacking(rule, stacks) if unmet else None
        noisy = [row for row in noisy if best is None or _reaches(row, best, rule)]
        unclear = [row for row in unclear if best is not None and _reaches(row, best, rule)]
        found.append(Choice(rule, best, tuple(equal), tuple(noisy), tuple(unclear), apart, lacking))
    return found


def _lacking(rule: Rule, rows: Sequence[Job]) -> str | None:
    """Return the field that a rule needs and no row has."""
    if rule.held and all(row.get(rule.held) is None for row in rows):
        return rule.field
    fields = filter(None, (rule.field, rule.figure))
    return next((one for one in fields if all(row.get(one) is None for row in rows)), None)


def _equal(best: Job, fit: Sequence[Job], rule: Rule) -> list[Job]:
    others = [row for row in fit if row is not best]
    if rule.figure is None:
        return [row for row in others if rule.value(row)[0] == rule.value(best)[0]]
    mine = best.get(rule.figure)
    return [
        row
        for row in others
        if _reaches(row, best, rule) and row.get(rule.figure)["low"] <= mine["high"]
    ]


def _reaches(row: Job, best: Job, rule: Rule) -> bool:
    """Return whether a row may be as good as the best one, by the upper end of its interval."""
    figure = str(rule.figure)
    own = row.get(figure)
    return own is not None and bool(own["high"] >= best.get(figure)["low"])
