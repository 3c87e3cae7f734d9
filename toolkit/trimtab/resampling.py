"""The percentile bootstrap: intervals of figures whose samples are drawn anew."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap
from typing_extensions import TypedDict

RESAMPLES = 9999
CONFIDENCE = 0.95

Samples = Sequence[float] | NDArray[np.float64]


class Estimate(TypedDict):
    """A point estimate and its interval."""

    estimate: float
    low: float
    high: float


def rate_difference(
    baseline: Samples, candidate: Samples, weights: Samples, *, seed: int
) -> Estimate:
    """Return (sum(candidate) - sum(baseline)) / sum(weights), paired, with its 95 % interval."""

    def statistic(
        first: NDArray[Any], second: NDArray[Any], weight: NDArray[Any], axis: int = -1
    ) -> Any:
        return (second.sum(axis=axis) - first.sum(axis=axis)) / weight.sum(axis=axis)

    return resampled((baseline, candidate, weights), statistic, True, seed)


def resampled(
    samples: Sequence[Samples], statistic: Callable[..., Any], paired: bool, seed: int
) -> Estimate:
    """Return a statistic of samples with its interval.

    Parameters
    ----------
    statistic : callable
        Takes the samples and an ``axis``.
    paired : bool
        Whether samples of the same index are drawn together.
    """
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
