"""Which stack to use when, by rules that the report states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trimtab.report.job import Job
from trimtab.report.verdict import FASTER, verdict

SAME = 1e-3  # a difference of bits per byte, as a share, that is rounding
BUDGETS = (0.01, 0.05)


@dataclass(frozen=True)
class Rule:
    """A wish, and the rows that meet it.

    Attributes
    ----------
    wish : str
        What a reader may want.
    how : str
        How the stack is found, as the report states it.
    admits : callable
        Whether a row meets the wish at all.
    value : callable
        What is largest for the best row.
    """

    wish: str
    how: str
    admits: Callable[[Job, Sequence[Job]], bool]
    value: Callable[[Job], float]


@dataclass(frozen=True)
class Choice:
    """The best row by a rule, and those that the intervals cannot tell from it."""

    rule: Rule
    best: Job | None
    equal: tuple[Job, ...]


def same_text(job: Job) -> bool:
    """Return whether every greedy text is the baseline's, and bits per byte are but for rounding."""
    change = job.get("derived.bits_increase")
    exact: float | None = job.get("quality.exact_match")
    return exact == 1 and change is not None and abs(change["estimate"]) < SAME


def kv_share(job: Job) -> float | None:
    """Return the KV memory that the stack holds over transformers', serving where that was run."""
    held = job.get("derived.serving_kv_bytes") or job.get("derived.kv_bytes_per_byte")
    return held and float(held["candidate"] / held["baseline"])


def choices(rows: Sequence[Job]) -> list[Choice]:
    """Return one choice a rule among rows of one model, text and machine."""
    found = []
    for rule in RULES:
        fit = [row for row in rows if row.ok and row.methods and rule.admits(row, rows)]
        best = max(fit, key=rule.value, default=None)
        equal = () if best is None else tuple(_equal(best, fit, rule))
        found.append(Choice(rule, best, equal))
    return found


def _equal(best: Job, fit: Sequence[Job], rule: Rule) -> list[Job]:
    others = [row for row in fit if row is not best]
    if rule.value is not _speed:
        return [row for row in others if rule.value(row) == rule.value(best)]
    low = best.get("speed.speedup")["low"]
    return [row for row in others if row.get("speed.speedup")["high"] >= low]


def _speed(job: Job) -> float:
    return float(job.get("speed.speedup")["estimate"])


def _faster(job: Job, rows: Sequence[Job]) -> bool:
    return verdict(job, rows) == FASTER


def _within(budget: float) -> Rule:
    def admits(job: Job, rows: Sequence[Job]) -> bool:
        change = job.get("derived.bits_increase")
        return _faster(job, rows) and change is not None and change["high"] <= budget

    return Rule(
        f"at most {budget:.0%} more bits per byte",
        f"the fastest whose whole 95 % interval of the change is at most +{budget:.0%}",
        admits,
        _speed,
    )


RULES = (
    Rule(
        "the text must not change",
        "the fastest whose greedy texts are all the unmodified model's, and whose bits per byte "
        f"differ by less than {SAME:.1%}",
        lambda job, rows: _faster(job, rows) and same_text(job),
        _speed,
    ),
    *map(_within, BUDGETS),
    Rule(
        "least KV memory",
        "the stack that holds the least for the same work, where that is less than transformers' "
        "own cache: for the most requests at once where serving was measured, else for one text",
        lambda job, rows: (kv_share(job) or 1) < 1,
        lambda job: -(kv_share(job) or 1),
    ),
)
