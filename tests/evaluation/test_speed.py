"""What timings say: typical times, outliers and verdicts."""

import pytest

from tests.evaluation.test_rounds import timing
from trimtab.evaluation.speed import outliers, verdict


def estimate(low: float, high: float) -> dict[str, float]:
    return {"estimate": (low * high) ** 0.5, "low": low, "high": high}


@pytest.mark.parametrize(
    ("speedup", "control", "expected"),
    [
        ((1.05, 1.09), (0.99, 1.02), "faster"),
        ((1.03, 1.09), (0.97, 1.04), "no difference found"),  # clear of 1, not of the control
        ((0.80, 0.90), (0.95, 1.05), "slower"),
        ((0.85, 0.97), (0.96, 1.05), "no difference found"),
        ((0.80, 1.10), (0.99, 1.01), "too noisy to say"),
        ((1.50, 2.50), (0.80, 1.30), "faster"),  # wide, and clear all the same
        ((0.99, 1.01), (1.02, 1.06), "too noisy to say"),  # what is not there was found
        ((1.10, 1.12), (1.02, 1.06), "faster"),
        ((0.99, 1.01), (0.99, 1.01), "no difference found"),
    ],
)
def test_a_verdict_is_clear_of_one_and_of_the_control(speedup, control, expected):
    assert verdict(estimate(*speedup), estimate(*control)) == expected


def test_outliers_are_unlike_others_of_their_prompt():
    calm = [1.0, 10.0, 1.01, 10.1, 0.99, 9.9, 1.02, 10.2, 0.98, 9.8]
    assert outliers([timing(seconds) for seconds in calm], 2) == 0
    disturbed = [*calm[:-2], 1.6, 5.0]
    assert outliers([timing(seconds) for seconds in disturbed], 2) == 2
