"""What timings say: which are outliers, which model is faster."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum

import numpy as np

from trimtab.evaluation.intervals import Estimate, half_width
from trimtab.evaluation.timing import Timing

OUTLIER = 3.5  # robust standard deviations
TOO_WIDE = math.log(1.1)
TO_DEVIATION = 1.4826  # a normal distribution's standard deviation over its median deviation


class Verdict(StrEnum):
    """What the intervals of a speedup and of its control say together."""

    faster = "faster"
    slower = "slower"
    no_difference = "no difference found"
    too_noisy = "too noisy to say"


def verdict(speedup: Estimate, control: Estimate) -> Verdict:
    """Return which model is faster, if that can be said.

    Parameters
    ----------
    speedup, control : Estimate
        Of the candidate, and of the baseline over itself, timed in the same rounds.
    """
    if speedup["low"] > max(1, control["high"]):
        return Verdict.faster
    if speedup["high"] < min(1, control["low"]):
        return Verdict.slower
    biased = not control["low"] <= 1 <= control["high"]
    if biased or half_width(speedup) > TOO_WIDE:
        return Verdict.too_noisy
    return Verdict.no_difference


def outliers(timings: Sequence[Timing], prompts: int) -> int:
    """Count the generations that took unlike others of their prompt.

    In logarithms of the total time: further from their prompt's median than `OUTLIER` standard
    deviations, as the median absolute deviation of all of them has it.
    """
    logs = np.log([timing.total for timing in timings]).reshape(-1, prompts)
    distances = np.abs(logs - np.median(logs, axis=0))
    return int(np.sum(distances > OUTLIER * TO_DEVIATION * np.median(distances)))
