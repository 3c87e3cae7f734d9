"""Which stack to use when, by rules that the report states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trimtab.report.figures import interval
from trimtab.report.job import Job
from trimtab.report.verdict import FASTER, verdict

BITS = "derived.bits_increase"
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
    field : str
        What rows are judged by: where none has it, nothing can be said.
    admits : callable
        Whether a row meets the wish at all.
    value : callable
        What is largest for the best row: first what the wish is about, then what decides a tie.
    told : callable
        What the best row is best at, in words.
    """

    wish: str
    how: str
    field: str
    admits: Callable[[Job, Sequence[Job]], bool]
    value: Callable[[Job], tuple[float, ...]]
    told: Callable[[Job], str]


@dataclass(frozen=True)
class Choice:
    """The best row by a rule, and those that the intervals cannot tell from it."""

    rule: Rule
    best: Job | None
    equal: tuple[Job, ...]


def same_text(job: Job) -> bool:
    """Return whether greedy texts are the baseline's, and bits per byte but for rounding."""
    change = job.get(BITS)
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
        return [row for row in others if rule.value(row)[0] == rule.value(best)[0]]
    low = best.get("speed.speedup")["low"]
    return [row for row in others if row.get("speed.speedup")["high"] >= low]


def _speed(job: Job) -> tuple[float, ...]:
    return (job.get("speed.speedup.estimate") or 0.0,)


def _memory(job: Job) -> tuple[float, ...]:
    return -(kv_share(job) or 1.0), float(same_text(job)), *_speed(job)


def _faster(job: Job, rows: Sequence[Job]) -> bool:
    return verdict(job, rows) == FASTER


def _speed_told(job: Job) -> str:
    return f"{interval(job.get('speed.speedup'), '.2f')} times the speed"


def _memory_told(job: Job) -> str:
    return f"{kv_share(job):.0%} of transformers' KV memory, at {_speed_told(job)}"


def _within(budget: float) -> Rule:
    def admits(job: Job, rows: Sequence[Job]) -> bool:
        change = job.get(BITS)
        return _faster(job, rows) and change is not None and change["high"] <= budget

    return Rule(
        f"at most {budget:.0%} more bits per byte",
        f"the fastest stack whose change is at most +{budget:.0%} at the upper end of its 95 % "
        "interval",
        BITS,
        admits,
        _speed,
        _speed_told,
    )


RULES = (
    Rule(
        "the text must not change",
        "the fastest stack with the same greedy texts as the unmodified model, and with bits per "
        f"byte that differ by less than {SAME:.1%}",
        BITS,
        lambda job, rows: _faster(job, rows) and same_text(job),
        _speed,
        _speed_told,
    ),
    *map(_within, BUDGETS),
    Rule(
        "speed alone",
        "the fastest stack, whatever it costs",
        "speed.speedup",
        _faster,
        _speed,
        _speed_told,
    ),
    Rule(
        "least KV memory",
        "the stack with the smallest KV cache for the same work, if it is smaller than "
        "transformers' own: with the most requests at once if serving was measured, else for one "
        "text. Among equals, one that does not change the text, then the fastest",
        "derived.kv_bytes_per_byte",
        lambda job, rows: (kv_share(job) or 1) < 1,
        _memory,
        _memory_told,
    ),
)
