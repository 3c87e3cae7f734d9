"""Whether a stack is faster or slower: only where its interval is clear of the noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trimtab.evaluation.intervals import Estimate
from trimtab.evaluation.speed import verdict as of_intervals
from trimtab.report.job import Job
from trimtab.report.labels import machine, told_apart

ONE: Estimate = {"estimate": 1.0, "low": 1.0, "high": 1.0}
FASTER, SLOWER, ALIKE = "faster", "slower", "no difference found"
NOISY, UNMEASURED = "too noisy to say", "speed not measured"
MANY = 3  # rounds, for Student's interval not to be far wider than what is measured
SAID = {
    FASTER: "faster than the unmodified model",
    SLOWER: "slower than the unmodified model",
    ALIKE: "not measurably faster or slower than the unmodified model",
    NOISY: "too noisy to say whether it is faster or slower",
}


def setting(job: Job) -> tuple[Any, ...]:
    """Return what rows must share for their figures to compare: model, text and machine."""
    facts = ("model.name", "model.fingerprint", "model.dtype", "corpus.name", "corpus.digest")
    return (*(job.get(name) for name in facts), machine(job))


def groups_of(rows: Sequence[Job]) -> list[list[Job]]:
    """Return the rows that compare with each other: one model, one text, one machine."""
    groups: dict[Any, list[Job]] = {}
    for row in rows:
        groups.setdefault(setting(row), []).append(row)
    return list(groups.values())


def names_of(groups: Sequence[Sequence[Job]]) -> list[str]:
    """Return what groups are of, with what tells them apart where names do not."""
    firsts = [group[0] for group in groups]
    names = [
        f"{one.get('model.name')} on {one.get('corpus.name')}, {machine(one)}"
        + ", random weights" * one.random_weights
        for one in firsts
    ]
    for field in ("model.dtype", "model.fingerprint", "corpus.digest"):
        names = told_apart(names, [f"({field} {str(one.get(field))[:12]})" for one in firsts])
    return names


def verdict(job: Job, rows: Sequence[Job]) -> str:
    """Return what the job itself found, else what the intervals say.

    `faster` and `slower` need an interval that is clear of 1 and of the control's: the job's own,
    or that of the baseline among the rows.
    """
    own: str | None = job.get("speed.verdict")
    if own is not None:
        return own
    speedup, control = job.get("speed.speedup"), _control(job, rows)
    if speedup is None:
        return UNMEASURED
    high = max(1.0, control["high"]) if control else 1.0
    low = min(1.0, control["low"]) if control else 1.0
    if speedup["low"] > high:
        return FASTER
    return SLOWER if speedup["high"] < low else ALIKE


def first_token(job: Job) -> str:
    """Return what the intervals say of the time to the first token of one text."""
    return _judged(job, "speed.prefill_speedup", "speed.prefill_control")


def serves(job: Job) -> str:
    """Return what the intervals say of many requests together, over padded `generate`."""
    return _judged(job, "serving.speedup", "serving.control")


def serves_continuously(job: Job) -> str:
    """Return what they say of many requests together, over transformers' continuous batching."""
    return _judged(job, "serving.speedup_continuous", "serving.control")


def few_rounds(job: Job) -> str:
    """Return that serving took too few rounds for its intervals; empty where it did not."""
    rounds = min((one["rounds"] for one in job.get("serving.servers") or ()), default=MANY)
    return "" if rounds >= MANY else f"{rounds:.0f} rounds are too few: raise serving.repeats"


def _judged(job: Job, speedup: str, control: str) -> str:
    found = job.get(speedup)
    return UNMEASURED if found is None else str(of_intervals(found, job.get(control) or ONE))


def said(verdict: str) -> str:
    """Return a verdict in words that stand for themselves."""
    return SAID.get(verdict, verdict)


def _control(job: Job, rows: Sequence[Job]) -> Estimate | None:
    """Return the interval of the unmodified model against itself, measured nearest to the job."""
    own: Estimate | None = job.get("speed.control")
    if own is not None:
        return own
    alike = [one for one in rows if one.ok and not one.methods and setting(one) == setting(job)]
    alike.sort(key=lambda one: one.root != job.root)
    found: Estimate | None = alike[0].get("speed.speedup") if alike else None
    return found
