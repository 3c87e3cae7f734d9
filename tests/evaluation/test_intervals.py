"""Estimates with intervals: what they are, and that they hold the truth as often as they say."""

import numpy as np
import pytest
from scipy.stats import norm, wilcoxon

from tests.evaluation.noise import NOISES, beside_a_process
from trimtab.evaluation.intervals import (
    RANKS_CONFIDENCE,
    _means_outside,
    geometric_mean,
    half_width,
    mean_ratio,
    proportion,
    rate_difference,
    ratio,
    typical,
    typical_ratio,
)

JOBS = 500


def timed(noise, pairs: int, seed: int, speedup: float = 1.0) -> tuple[list[float], list[float]]:
    """Return the seconds of a baseline and a candidate, timed with a third in drawn order."""
    random = np.random.default_rng(seed)
    factors = random.permuted(noise(3 * pairs, random).reshape(pairs, 3), axis=1)
    return [*factors[:, 0]], [*(factors[:, 1] / speedup)]


def share_that_holds(interval, noise, pairs: int, truth: float = 1.0) -> float:
    found = [interval(*timed(noise, pairs, seed, truth)) for seed in range(JOBS)]
    return sum(one["low"] <= truth <= one["high"] for one in found) / JOBS


@pytest.mark.parametrize("pairs", [6, 8, 20, 40])
@pytest.mark.parametrize("noise", NOISES, ids=lambda one: one.__name__)
def test_a_typical_ratio_holds_the_truth_in_whatever_noise(noise, pairs):
    assert share_that_holds(typical_ratio, noise, pairs, truth=1.3) >= 0.925


def test_a_bootstrap_of_sums_would_not_hold_as_much():
    def bootstrap(first, second):
        return ratio(first, second, paired=True, seed=0)

    assert share_that_holds(bootstrap, beside_a_process, 6) < 0.9


def test_a_typical_ratio_is_that_of_the_signed_rank_test():
    first, second = np.random.default_rng(0).lognormal([[0.2], [0.0]], 0.1, (2, 12))
    found = typical_ratio(first, second)
    logs = np.log(first / second)
    inside, outside = 1 + 1e-9, 1 - 1e-9
    for bound, inwards in (("low", inside), ("high", outside)):
        for side, rejected in ((inwards, False), (1 / inwards, True)):
            p = wilcoxon(logs - np.log(found[bound] * side), method="exact").pvalue
            assert (p <= 0.04) == rejected
    swapped = typical_ratio(second, first)
    assert swapped == pytest.approx(
        {"estimate": 1 / found["estimate"], "low": 1 / found["high"], "high": 1 / found["low"]}
    )
    assert half_width(found) == pytest.approx(half_width(swapped))


@pytest.mark.parametrize("noise", NOISES, ids=lambda one: one.__name__)
def test_what_is_typical_of_each_agrees_with_what_is_typical_of_pairs(noise):
    for seed in range(JOBS):
        baseline, candidate = timed(noise, 8, seed, 1.3)
        found = typical_ratio(baseline, candidate)
        first, second = (typical(times)["estimate"] for times in (baseline, candidate))
        assert found["low"] <= first / second <= found["high"]


def test_the_signed_ranks_of_a_thousand_pairs_are_nearly_normal():
    pairs = 1000
    mean, spread = pairs * (pairs + 1) / 4, (pairs * (pairs + 1) * (2 * pairs + 1) / 24) ** 0.5
    lower = norm.ppf((1 - RANKS_CONFIDENCE) / 2, mean, spread)
    assert _means_outside(pairs) == pytest.approx(lower, abs=0.01 * spread)


def test_two_disturbed_samples_of_eight_move_what_is_typical_little():
    found = typical([1.0, 1.01, 0.99, 1.0, 20.0, 1.02, 0.98, 30.0])
    assert found["estimate"] == pytest.approx(1, abs=0.03)
    assert found["low"] < 1 < found["high"]


def test_what_is_typical_turns_with_its_unit():
    times = [0.9, 1.1, 1.3, 1.0, 1.2, 2.0, 0.8]
    found, rates = typical(times), typical([1 / one for one in times])
    assert rates == pytest.approx(
        {"estimate": 1 / found["estimate"], "low": 1 / found["high"], "high": 1 / found["low"]}
    )


def test_one_disturbed_pair_of_eight_moves_a_typical_ratio_little():
    calm = [1.0, 1.01, 0.99, 1.02, 0.98, 1.0, 1.01, 0.99]
    found = typical_ratio([*calm[:-1], 50.0], [1.0] * 8)
    assert found["estimate"] == pytest.approx(1, abs=0.02)


def test_too_few_pairs_have_no_interval():
    with pytest.raises(ValueError, match="5 pairs: an interval needs at least 6"):
        typical_ratio([1.0] * 5, [1.0] * 5)


def test_a_constant_ratio_has_no_spread():
    found = ratio([2.0, 4.0, 8.0], [1.0, 2.0, 4.0], paired=True, seed=0)
    assert found == pytest.approx({"estimate": 2.0, "low": 2.0, "high": 2.0})


def test_pairing_removes_what_both_have_in_common():
    rng = np.random.default_rng(0)
    difficulty = rng.uniform(1, 10, 40)
    first, second = difficulty * rng.normal(1.2, 0.01, 40), difficulty
    paired = ratio(first, second, paired=True, seed=0)
    unpaired = ratio(first, second, paired=False, seed=0)
    assert paired["estimate"] == unpaired["estimate"] == pytest.approx(1.2, rel=0.01)
    assert paired["high"] - paired["low"] < 0.1 * (unpaired["high"] - unpaired["low"])


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    covered = 0
    for seed in range(200):
        bottom = rng.normal(10, 1, 40)
        found = ratio(bottom * 1.5 + rng.normal(0, 2, 40), bottom, paired=True, seed=seed)
        covered += found["low"] <= 1.5 <= found["high"]
    assert 0.88 <= covered / 200 <= 0.99


@pytest.mark.parametrize("paired", [True, False])
def test_students_interval_covers_the_truth_with_three_samples(paired):
    rng, covered = np.random.default_rng(2), 0
    for _ in range(400):
        top, bottom = np.exp(rng.normal(0, 0.05, (2, 3)))
        found = mean_ratio(1.5 * top, bottom, paired=paired)
        expected = 1.5 * np.exp(np.log(top).mean() - np.log(bottom).mean())
        assert found["estimate"] == pytest.approx(expected)
        covered += found["low"] <= 1.5 <= found["high"]
    assert 0.92 <= covered / 400 <= 0.98


def test_students_interval_of_one_mean_covers_it_with_three_samples():
    rng, covered = np.random.default_rng(3), 0
    for _ in range(400):
        samples = 1.5 * np.exp(rng.normal(0, 0.05, 3))
        found = geometric_mean(samples)
        assert found["estimate"] == pytest.approx(np.prod(samples) ** (1 / 3))
        covered += found["low"] <= 1.5 <= found["high"]
    assert 0.92 <= covered / 400 <= 0.98


def test_a_difference_of_rates_is_weighted_by_size():
    found = rate_difference([10.0, 1.0], [10.0, 2.0], [9.0, 1.0], seed=0)
    assert found["estimate"] == pytest.approx(0.1)
    assert found["low"] == pytest.approx(0.0)
    assert found["high"] == pytest.approx(1.0)


def test_the_same_seed_gives_the_same_interval():
    samples = [1.0, 2.0, 4.0], [1.0, 3.0, 2.0]
    assert ratio(*samples, paired=True, seed=3) == ratio(*samples, paired=True, seed=3)


def test_a_share_of_a_few_has_the_exact_interval():
    # All of n were found: the share by which that happens once in forty times is its root.
    assert proportion(2, 2) == {"estimate": 1.0, "low": pytest.approx(0.025**0.5), "high": 1.0}
    none = proportion(0, 3)
    assert (none["low"], none["high"]) == (0.0, pytest.approx(1 - 0.025 ** (1 / 3)))
