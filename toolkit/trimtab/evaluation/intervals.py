"""Point estimates with 95 % intervals, from raw samples; docs/statistics.md says which is what."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, ttest_1samp, ttest_ind, ttest_rel

from trimtab.config import LEAST_TIMED
from trimtab.resampling import CONFIDENCE, Estimate, Samples, resampled
from trimtab.resampling import rate_difference as rate_difference

RANKS_CONFIDENCE = 0.96  # 0.95 is left where rounds end when the interval is narrow


def typical_ratio(numerator: Samples, denominator: Samples) -> Estimate:
    """Return what numerator / denominator typically is, from pairs of positive samples.

    The Hodges-Lehmann estimate of the pairs' log-ratios, the median of the means of any two of
    them, and the interval that inverts Wilcoxon's signed-rank test at `RANKS_CONFIDENCE`, with its
    exact distribution.

    Raises
    ------
    ValueError
        If there are fewer than `LEAST_TIMED` pairs.
    """
    if len(numerator) < LEAST_TIMED:
        raise ValueError(f"{len(numerator)} pairs: an interval needs at least {LEAST_TIMED}")
    logs = np.log(numerator) - np.log(denominator)
    means = np.sort(_means_of_two(logs))
    outside = _means_outside(len(logs))
    low, high = means[outside - 1], means[-outside]
    return {
        "estimate": float(np.exp(np.median(means))),
        "low": float(np.exp(low)),
        "high": float(np.exp(high)),
    }


def typical(samples: Samples) -> Estimate:
    """Return what positive samples typically are, as `typical_ratio` has it of pairs."""
    return typical_ratio(samples, [1.0] * len(samples))


def geometric_mean(samples: Samples) -> Estimate:
    """Return the geometric mean of positive samples, with the interval that `mean_ratio` has."""
    logs = np.log(samples)
    return _exponential(logs.mean(), ttest_1samp(logs, 0).confidence_interval(CONFIDENCE))


def mean_ratio(numerator: Samples, denominator: Samples, *, paired: bool) -> Estimate:
    """Return the ratio of the geometric means of positive samples, with Student's interval.

    For samples too few to rank or to resample: it takes their logarithms for normally distributed.

    Parameters
    ----------
    paired : bool
        Whether samples of the same index belong together; else Welch's interval is taken.
    """
    logs = np.log(numerator), np.log(denominator)
    test = ttest_rel(*logs) if paired else ttest_ind(*logs, equal_var=False)
    found = test.confidence_interval(CONFIDENCE)
    return _exponential(logs[0].mean() - logs[1].mean(), found)


def half_width(found: Estimate) -> float:
    """Return half the width of a ratio's interval, in logarithms: 0.03 is about 3 %."""
    return math.log(found["high"] / found["low"]) / 2


def ratio(numerator: Samples, denominator: Samples, *, paired: bool, seed: int) -> Estimate:
    """Return sum(numerator) / sum(denominator) with its 95 % percentile bootstrap interval.

    Parameters
    ----------
    paired : bool
        Whether samples of the same index belong, and are resampled, together.

    Returns
    -------
    dict
        ``estimate``, ``low`` and ``high``.
    """

    def statistic(top: NDArray[Any], bottom: NDArray[Any], axis: int = -1) -> Any:
        return top.sum(axis=axis) / bottom.sum(axis=axis)

    return resampled((numerator, denominator), statistic, paired, seed)


def proportion(found: int, of: int) -> Estimate:
    """Return found / of, counts, with Clopper and Pearson's exact interval."""
    interval = binomtest(found, of).proportion_ci(CONFIDENCE)
    return {"estimate": found / of, "low": float(interval.low), "high": float(interval.high)}


def _exponential(middle: float, interval: Any) -> Estimate:
    ends = (middle, interval.low, interval.high)
    estimate, low, high = (float(np.exp(one)) for one in ends)
    return {"estimate": estimate, "low": low, "high": high}


def _means_of_two(logs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the means of any two of the numbers, each with itself too."""
    first, second = np.triu_indices(len(logs))
    return (logs[first] + logs[second]) / 2


@cache
def _means_outside(pairs: int) -> int:
    """Return how many of the pairs' means lie outside each end of the interval, and at it."""
    ways = np.ones(1)  # of each sum of the ranks whose sign is positive
    for rank in range(1, pairs + 1):
        nothing = np.zeros(rank)
        ways = (np.append(ways, nothing) + np.append(nothing, ways)) / 2
    return int(np.sum(np.cumsum(ways) <= (1 - RANKS_CONFIDENCE) / 2))
