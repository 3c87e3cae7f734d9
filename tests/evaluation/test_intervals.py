import numpy as np
import pytest

from trimtab.evaluation.intervals import mean_ratio, rate_difference, ratio


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


def test_a_difference_of_rates_is_weighted_by_size():
    found = rate_difference([10.0, 1.0], [10.0, 2.0], [9.0, 1.0], seed=0)
    assert found["estimate"] == pytest.approx(0.1)
    assert found["low"] == pytest.approx(0.0)
    assert found["high"] == pytest.approx(1.0)


def test_the_same_seed_gives_the_same_interval():
    samples = [1.0, 2.0, 4.0], [1.0, 3.0, 2.0]
    assert ratio(*samples, paired=True, seed=3) == ratio(*samples, paired=True, seed=3)
