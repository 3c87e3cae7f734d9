"""Which stack to use when, by rules that the report states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trimtab.report.figures import interval
from trimtab.report.job import Job
from trimtab.report.verdict import (
    ALIKE,
    FASTER,
    NOISY,
    UNMEASURED,
    first_token,
    serves,
    serves_continuously,
    verdict,
)

BITS, QUALITY = "derived.bits_increase", "quality.bits_per_byte"
SPEED, FIRST = "speed.speedup", "speed.prefill_speedup"
SERVING, CONTINUOUS = "serving.speedup", "serving.speedup_continuous"
TIES = "Among those that its interval cannot tell from it, one that does not change the text"
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
        Whether a row meets the wish, its speed aside.
    value : callable
        What is largest for the best row: first what the wish is about, then what decides a tie.
    told : callable
        What the best row is best at, in words.
    figure : str or None
        The estimate that `value` takes, by whose intervals rows tie; None where `value` is counted.
    judged : callable or None
        A row's verdict, which has to be `faster`; None where the wish is not about speed.
    """

    wish: str
    how: str
    field: str
    admits: Callable[[Job, Sequence[Job]], bool]
    value: Callable[[Job], tuple[float, ...]]
    told: Callable[[Job], str]
    figure: str | None = None
    judged: Callable[[Job, Sequence[Job]], str] | None = None


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
        Those whose measurement was too noisy to say.
    lacking : str or None
        What decides and no row has.
    """

    rule: Rule
    best: Job | None
    equal: tuple[Job, ...]
    noisy: tuple[Job, ...]
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
            return f"{kv_share(self.best):.0%} of the memory"
        return interval(self.best.get(self.rule.figure), ".2f")


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
        admitted = [row for row in rows if row.ok and row.methods and rule.admits(row, rows)]
        said = [rule.judged(row, rows) if rule.judged else FASTER for row in admitted]
        fit = [row for row, one in zip(admitted, said, strict=True) if one == FASTER]
        noisy = tuple(row for row, one in zip(admitted, said, strict=True) if one == NOISY)
        best = max(fit, key=rule.value, default=None)
        equal = [] if best is None else _equal(best, fit, rule)
        alike = [row for row in equal if same_text(row)]
        if best is not None and rule.figure and alike and not same_text(best):
            best = max(alike, key=rule.value)
            equal = _equal(best, fit, rule)
        stacks = [row for row in rows if row.methods] or rows
        lacking = _lacking(rule, stacks) if best is None and not noisy else None
        found.append(Choice(rule, best, tuple(equal), noisy, lacking))
    return found


def _lacking(rule: Rule, rows: Sequence[Job]) -> str | None:
    """Return the field that a rule needs and no row has."""
    if rule.figure is None and any(kv_share(row) is not None for row in rows):
        return None
    fields = filter(None, (rule.field, rule.figure))
    return next((one for one in fields if all(row.get(one) is None for row in rows)), None)


def _equal(best: Job, fit: Sequence[Job], rule: Rule) -> list[Job]:
    others = [row for row in fit if row is not best]
    if rule.figure is None:
        return [row for row in others if rule.value(row)[0] == rule.value(best)[0]]
    mine, field = best.get(rule.figure), rule.figure
    return [
        row
        for row in others
        if row.get(field)["high"] >= mine["low"] and row.get(field)["low"] <= mine["high"]
    ]


def _largest(figure: str) -> Callable[[Job], tuple[float, ...]]:
    return lambda job: (job.get(f"{figure}.estimate") or 0.0,)


def _memory(job: Job) -> tuple[float, ...]:
    return -(kv_share(job) or 1.0), float(same_text(job)), *_largest(SPEED)(job)


def _any(job: Job, rows: Sequence[Job]) -> bool:
    return True


def _serves(job: Job, rows: Sequence[Job]) -> str:
    found = {serves(job), serves_continuously(job)}
    if found <= {FASTER, UNMEASURED}:
        return serves(job)
    return NOISY if found <= {FASTER, NOISY, UNMEASURED} else ALIKE


def _requests(job: Job) -> str:
    """Return with how many requests a job served most."""
    most = max((one["requests"] for one in job.get("serving.servers") or ()), default=0)
    return f"{most} requests together"


def _speed_told(job: Job) -> str:
    return f"{interval(job.get(SPEED), '.2f')} times the speed"


def _first_told(job: Job) -> str:
    return f"the first token {interval(job.get(FIRST), '.2f')} times as fast"


def _serving_told(job: Job) -> str:
    told = (
        f"{_requests(job)} at {interval(job.get(SERVING), '.2f')} times the requests per second "
        "of transformers' padded generate"
    )
    other = job.get(CONTINUOUS)
    return told + (f", {interval(other, '.2f')} times continuous batching's" if other else "")


def _memory_told(job: Job) -> str:
    of = _requests(job) if job.get("derived.serving_kv_bytes") else "one text"
    return f"{kv_share(job):.0%} of transformers' KV memory, of {of}, at {_speed_told(job)}"


def _within(budget: float) -> Rule:
    def admits(job: Job, rows: Sequence[Job]) -> bool:
        change = job.get(BITS)
        return change is not None and bool(change["high"] <= budget)

    return Rule(
        f"at most {budget:.0%} more bits per byte",
        f"the fastest stack whose change is at most +{budget:.0%} at the upper end of its 95 % "
        f"interval. {TIES}",
        QUALITY,
        admits,
        _largest(SPEED),
        _speed_told,
        SPEED,
        verdict,
    )


RULES = (
    Rule(
        "the text must not change",
        "the fastest stack with the same greedy texts as the unmodified model, and with bits per "
        f"byte that differ by less than {SAME:.1%}",
        QUALITY,
        lambda job, rows: same_text(job),
        _largest(SPEED),
        _speed_told,
        SPEED,
        verdict,
    ),
    *map(_within, BUDGETS),
    Rule(
        "speed alone",
        f"the fastest stack, whatever it costs. {TIES}",
        SPEED,
        _any,
        _largest(SPEED),
        _speed_told,
        SPEED,
        verdict,
    ),
    Rule(
        "the first token soon",
        "the stack with the shortest time to the first token, one text at a time, if its interval "
        f"is clear of 1 and of its control's. {TIES}",
        FIRST,
        _any,
        _largest(FIRST),
        _first_told,
        FIRST,
        lambda job, rows: first_token(job),
    ),
    Rule(
        "many requests at once",
        "the stack that answers most requests per second over those of transformers' padded "
        "generate beside it, if the intervals over that and over its continuous batching are clear "
        "of 1 and of the control's. "
        f"{TIES}",
        SERVING,
        _any,
        _largest(SERVING),
        _serving_told,
        SERVING,
        _serves,
    ),
    Rule(
        "least KV memory",
        "the stack with the smallest KV cache for the same work, if it is smaller than "
        "transformers' own: with the most requests at once if serving was measured, else for one "
        "text. Among equals, one that does not change the text, then the fastest",
        "kv.committed_bytes",
        lambda job, rows: (kv_share(job) or 1) < 1,
        _memory,
        _memory_told,
    ),
)
