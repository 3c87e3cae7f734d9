"""Where the time of decode steps goes: to some kinds of work, and outside of all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from typing_extensions import TypedDict

from trimtab.evaluation.timing import Timing

Work = dict[str, float]


class TextTime(TypedDict):
    """The milliseconds of a text, see docs/results.md; together they are its time."""

    prefill: float
    inputs: float
    transforms: float
    linear_layers: float
    attention: float
    head: float
    waiting: float
    outside: float


def spent(before: Mapping[str, float], after: Mapping[str, float]) -> Work:
    """Return the seconds between two readings of `Engine.step_seconds`, by kind of work.

    Empty where that is not known.
    """
    return {kind: seconds - before[kind] for kind, seconds in after.items()}


def milliseconds(samples: Sequence[Mapping[str, float]], seconds: float, count: int) -> Work:
    """Return what one of so many steps, or of so many texts, took by kind of work.

    Parameters
    ----------
    samples : sequence of mapping of str to float
        What was `spent` on parts of all of them.
    seconds : float
        What all of them took. What no kind of work took of it is `outside`.
    count : int

    Returns
    -------
    dict of str to float
        Empty where nothing is known of a sample.
    """
    if not all(samples):
        return {}
    work = {kind: 1e3 * sum(one[kind] for one in samples) / count for kind in samples[0]}
    return work | {"outside": 1e3 * seconds / count - sum(work.values())}


def text_time(timings: Sequence[Timing]) -> TextTime | None:
    """Return where the time of a text goes, in the mean; None where that is not known."""
    count = len(timings)
    first, total = (sum(getattr(one, name) for one in timings) for name in ("first", "total"))
    work = milliseconds([one.step_seconds for one in timings], total - first, count)
    if not work:
        return None
    parts = {kind.replace(" ", "_"): amount for kind, amount in work.items()}
    return cast(TextTime, {"prefill": 1e3 * first / count, **parts})
