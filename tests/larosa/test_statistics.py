import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.larosa.statistics import MagnitudeHistogram, SecondMoment


def test_moment_is_the_sum_over_all_tokens_whatever_the_batches():
    x = torch.randn(6, 10, 5)
    whole, parts = SecondMoment(5), SecondMoment(5)
    whole.update(x)
    for part in x:
        parts.update(part[None])
    reference = np.einsum("bti,btj->ij", *[x.double().numpy()] * 2)
    np.testing.assert_allclose(whole.total, reference, rtol=1e-12)
    np.testing.assert_allclose(parts.total, reference, rtol=1e-12)


@given(st.integers(0, 10_000), st.floats(0, 0.999), st.floats(-30, 30))
@settings(max_examples=60)
def test_quantile_agrees_with_sorting(seed, share, exponent):
    x = torch.randn(257, generator=torch.Generator().manual_seed(seed)) * 2.0**exponent
    histogram = MagnitudeHistogram()
    histogram.update(x[:100])
    histogram.update(x[100:])
    exact = x.abs().sort().values[int(share * 257)].item()
    assert histogram.quantile(share) <= exact
    assert histogram.quantile(share) == pytest.approx(exact, rel=2**-10)


def test_quantile_zero_drops_nothing():
    histogram = MagnitudeHistogram()
    histogram.update(torch.tensor([0.0, 1.0, 2.0]))
    assert histogram.quantile(0.0) == 0
