"""Whether a stack is faster or slower: only where its interval is clear of the noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.report.job import Job
from trimtab.report.labels import machine, told_apart

Estimate = Mapping[str, float]
FASTER, SLOWER, ALIKE = "faster", "slower", "no difference found"
NOISY, UNMEASURED = "too noisy to say", "speed not measured"
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
    names = [f"{one.get('model.name')} on {one.get('corpus.name')}, {machine(one)}"
             for one in firsts]  # fmt: skip
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
    return UNMEASURED if speedup is None else clear(speedup, control)


def clear(speedup: Estimate, control: Estimate | None) -> str:
    """Return `faster` or `slower` where an interval is clear of 1 and of the control's."""
    high = max(1.0, control["high"]) if control else 1.0
    low = min(1.0, control["low"]) if control else 1.0
    if speedup["low"] > high:
        return FASTER
    return SLOWER if speedup["high"] < low else ALIKE


def serves(job: Job) -> str:
    """Return what the intervals say of many requests at once, over padded `generate`."""
    own: str | None = job.get("serving.verdict")
    speedup = job.get("serving.speedup")
    if own is not None or speedup is None:
        return own or UNMEASURED
    return clear(speedup, job.get("serving.control"))


def first_token(job: Job) -> str:
    """Return what the intervals say of the time to the first token of one text."""
    speedup = job.get("speed.prefill_speedup")
    return UNMEASURED if speedup is None else clear(speedup, job.get("speed.prefill_control"))


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
