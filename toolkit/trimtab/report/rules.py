"""The rules by which a stack is chosen, as the report states them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trimtab.report.figures import interval, listed
from trimtab.report.job import Job
from trimtab.report.verdict import (
    ALIKE,
    FASTER,
    NOISY,
    SLOWER,
    UNMEASURED,
    few_rounds,
    first_token,
    serves,
    serves_continuously,
    verdict,
)

BITS, QUALITY = "derived.bits_increase", "quality.bits_per_byte"
SPEED, FIRST = "speed.speedup", "speed.prefill_speedup"
SERVING, CONTINUOUS = "serving.speedup", "serving.speedup_continuous"
CONTROLS = {SPEED: "speed.control", FIRST: "speed.prefill_control", SERVING: "serving.control"}
ONE_TEXT, TOGETHER = "derived.kv_bytes_per_byte", "derived.serving_kv_bytes"
IN_ALL = {ONE_TEXT: "derived.one_text_bytes", TOGETHER: "derived.serving_bytes"}
PACE = {ONE_TEXT: SPEED, TOGETHER: SERVING}  # how fast it is while it holds that
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
    held : str
        Of a wish about memory, the amounts that are counted; else empty.
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
    held: str = ""
    judged: Callable[[Job, Sequence[Job]], str] | None = None


def same_text(job: Job) -> bool:
    """Return whether greedy texts are the baseline's, and bits per byte but for rounding."""
    change = job.get(BITS)
    exact: float | None = job.get("quality.exact_match.estimate")
    return exact == 1 and change is not None and abs(change["estimate"]) < SAME


def kv_share(job: Job, held: str) -> float | None:
    """Return the KV memory that the stack holds over transformers', `ONE_TEXT` or `TOGETHER`."""
    found = job.get(held)
    return found and float(found["candidate"] / found["baseline"])


def _largest(figure: str) -> Callable[[Job], tuple[float, ...]]:
    return lambda job: (job.get(f"{figure}.estimate") or 0.0,)


def _any(job: Job, rows: Sequence[Job]) -> bool:
    return True


def _serves(job: Job, rows: Sequence[Job]) -> str:
    found = {serves(job), serves_continuously(job)}
    if SLOWER in found:
        return SLOWER
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


def _requests_told(job: Job) -> str:
    times = interval(job.get(SERVING), ".2f")
    return f"{times} times the requests per second of transformers' padded generate"


def _serving_told(job: Job) -> str:
    told = f"{_requests(job)} at {_requests_told(job)}"
    other = job.get(CONTINUOUS)
    return told + (f", {interval(other, '.2f')} times continuous batching's" if other else "")


def _least(where: str, held: str, decides: str) -> Rule:
    def value(job: Job) -> tuple[float, ...]:
        return -(kv_share(job, held) or 1.0), float(same_text(job)), *_largest(PACE[held])(job)

    return Rule(
        f"least KV memory, {where}",
        "the stack with the smallest KV cache for the same work, if it is smaller than "
        "transformers' own. Among equals, one that does not change the text, then the fastest",
        decides,
        lambda job, rows: (kv_share(job, held) or 1) < 1,
        value,
        lambda job: _memory_told(job, held),
        held=held,
    )


def doubt(rule: Rule, job: Job) -> str:
    """Return the figures of a job that was too noisy for a rule, and what they are not clear of."""
    parts = [rule.told(job)]
    peers = {"padded generate": serves, "continuous batching": serves_continuously}
    more, unclear = (
        [peer for peer, found in peers.items() if found(job) == kind] for kind in (FASTER, NOISY)
    )
    if rule.figure == SERVING:
        parts += [f"more than {listed(more)}"] if more else []
        parts.append(f"too noisy to say over {listed(unclear)}")
    control = job.get(CONTROLS.get(str(rule.figure), ""))
    if control is not None:
        parts.append(f"its control: {interval(control, '.2f')}")
    if rule.figure == SERVING and (few := few_rounds(job)):
        parts.append(few)
    return "; ".join(parts)


def _memory_told(job: Job, held: str) -> str:
    """Return the share of memory that is held, and that of the other way to work."""
    works = {ONE_TEXT: "one text", TOGETHER: _requests(job)}
    told = f"{kv_share(job, held):.0%} of transformers' KV memory, of {works.pop(held)}"
    ((other, work),) = works.items()
    share = kv_share(job, other)
    beside = "" if share is None else f" (of {work}: {share:.0%})"
    if in_all := job.get(IN_ALL[held]):
        ours, theirs = (f"{in_all[name] * 1e-6:,.0f}" for name in ("candidate", "baseline"))
        beside += f", in all {ours} MB with weights and copy of the head instead of {theirs}"
    if job.get(PACE[held]) is None:
        return told + beside
    pace = _speed_told(job) if held == ONE_TEXT else _requests_told(job)
    return f"{told}{beside}, at {pace}"


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
        judged=verdict,
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
        judged=verdict,
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
        judged=verdict,
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
        judged=lambda job, rows: first_token(job),
    ),
    Rule(
        "many requests together",
        "the stack that answers most requests per second over those of transformers' padded "
        "generate beside it, if the intervals over that and over its continuous batching are clear "
        "of 1 and of the control's. "
        f"{TIES}",
        SERVING,
        _any,
        _largest(SERVING),
        _serving_told,
        SERVING,
        judged=_serves,
    ),
    _least("one text at a time", ONE_TEXT, "kv.committed_bytes"),
    _least("many requests together", TOGETHER, "serving.servers"),
)
