import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.larosa.statistics import HeadMoment, MagnitudeHistogram, SecondMoment, SquareSum


@pytest.mark.parametrize(
    ("make", "width", "einsum"),
    [
        (lambda: SecondMoment(5), 5, lambda x: np.einsum("bti,btj->ij", x, x)),
        (lambda: SquareSum(5), 5, lambda x: np.einsum("bti,bti->i", x, x)),
        (  # two KV heads, three query heads read each, four entries a head
            lambda: HeadMoment(2, 4),
            24,
            lambda x: np.einsum("btghi,btghj->gij", *[x.reshape(6, 10, 2, 3, 4)] * 2),
        ),
        (  # as many KV heads as query heads
            lambda: HeadMoment(3, 2),
            6,
            lambda x: np.einsum("btgi,btgj->gij", *[x.reshape(6, 10, 3, 2)] * 2),
        ),
    ],
    ids=["second moment", "squares", "grouped heads", "heads"],
)
def test_sums_are_over_all_tokens_whatever_the_batches(make, width, einsum):
    x = torch.randn(6, 10, width, generator=torch.Generator().manual_seed(0))
    expected = einsum(x.double().numpy())
    whole, parts, flat = make(), make(), make()
    whole.update(x)
    for part in x:
        parts.update(part[None])
    flat.update(x.flatten(0, 1))  # some architectures flatten batch and positions
    for found in (whole, parts, flat):
        assert found.total.dtype == torch.float64
        np.testing.assert_allclose(found.total, expected, rtol=1e-12, atol=1e-12)


@given(st.integers(0, 10_000), st.floats(0, 0.999), st.floats(-30, 30))
@settings(max_examples=60)
def test_what_lies_below_agrees_with_sorting(seed, share, exponent):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(37, 7, generator=generator) * 2.0**exponent
    costs = torch.rand(7, generator=generator, dtype=torch.float64)
    histogram = MagnitudeHistogram(costs)
    histogram.update(x[:20])
    histogram.update(x[20:])
    ((threshold,), (cost,)) = histogram.below(torch.tensor([share], dtype=torch.float64))
    magnitudes = x.abs().double().numpy()
    exact = np.sort(magnitudes, axis=None)[int(share * x.numel())]
    if share > 0:
        assert threshold <= exact
        assert threshold == pytest.approx(exact, rel=2**-11)
    spent = np.where(magnitudes < float(threshold), magnitudes**2 * costs.numpy(), 0).sum()
    assert cost == pytest.approx(spent / 37, rel=1e-9)


def test_nothing_dropped_has_threshold_and_cost_0_also_where_there_are_zeros():
    histogram = MagnitudeHistogram(torch.ones(3, dtype=torch.float64))
    histogram.update(torch.tensor([[0.0, 1.0, 2.0], [4.0, 0.0, 8.0]]))
    shares = torch.tensor([0.0, 0.5], dtype=torch.float64)
    thresholds, costs = histogram.below(shares)
    assert thresholds.tolist() == [0, 2]
    assert costs.tolist() == [0, 0.5]
