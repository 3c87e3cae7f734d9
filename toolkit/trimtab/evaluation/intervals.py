"""Point estimates with bootstrap intervals, from raw samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap
from typing_extensions import TypedDict

RESAMPLES = 9999
CONFIDENCE = 0.95

Samples = Sequence[float]


class Estimate(TypedDict):
    """A point estimate and its interval."""

    estimate: float
    low: float
    high: float


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

    return _interval((numerator, denominator), statistic, paired, seed)


def rate_difference(
    baseline: Samples, candidate: Samples, weights: Samples, *, seed: int
) -> Estimate:
    """Return (sum(candidate) - sum(baseline)) / sum(weights), paired, with its 95 % interval."""

    def statistic(
        first: NDArray[Any], second: NDArray[Any], weight: NDArray[Any], axis: int = -1
    ) -> Any:
        return (second.sum(axis=axis) - first.sum(axis=axis)) / weight.sum(axis=axis)

    return _interval((baseline, candidate, weights), statistic, True, seed)


def _interval(
    samples: Sequence[Samples], statistic: Callable[..., Any], paired: bool, seed: int
) -> Estimate:
    arrays = [np.asarray(sample, dtype=np.float64) for sample in samples]
    found = bootstrap(
        arrays,
        statistic,
        paired=paired,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=1000,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return {
        "estimate": float(statistic(*arrays)),
        "low": float(found.low),
        "high": float(found.high),
    }
