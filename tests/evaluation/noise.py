"""What disturbs timings on a shared machine: factors on the time of one after another."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Random = np.random.Generator
Factors = NDArray[np.float64]


def quiet(count: int, random: Random) -> Factors:
    return np.exp(random.normal(0, 0.01, count))


def heavy_tailed(count: int, random: Random) -> Factors:
    return np.exp(0.02 * np.abs(random.standard_t(1.5, count)).clip(max=30))


def bursts(count: int, random: Random) -> Factors:
    hit = random.random(count) < 0.15
    return quiet(count, random) * np.exp(hit * random.exponential(0.5, count))


def drifting(count: int, random: Random) -> Factors:
    return quiet(count, random) * np.exp(np.linspace(0, random.choice([-0.3, 0.3]), count))


def autocorrelated(count: int, random: Random) -> Factors:
    state, found = random.normal(0, 0.11), []
    for change in random.normal(0, 0.05, count):
        state = 0.9 * state + change
        found.append(state)
    return np.exp(found)


def beside_a_process(count: int, random: Random) -> Factors:
    """Have it work and rest by turns, for about seven generations each."""
    works, found = random.random() < 0.5, []
    for change in random.random(count):
        works ^= change < 0.15
        found.append(random.uniform(1.3, 2.2) if works else 1.0)
    return quiet(count, random) * found


NOISES: list[Callable[[int, Random], Factors]] = [
    quiet, heavy_tailed, bursts, drifting, autocorrelated, beside_a_process,
]  # fmt: skip
