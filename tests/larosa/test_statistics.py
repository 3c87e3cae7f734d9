import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.larosa.statistics import (
    HeadMoment,
    MagnitudeHistogram,
    SecondMoment,
    SquareSum,
    Sum,
    binned,
)


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
        assert found.total().dtype == torch.float64
        np.testing.assert_allclose(found.total(), expected, rtol=1e-10, atol=1e-9)


@given(st.permutations(range(8)), st.floats(-200, 200))
@settings(max_examples=40)
def test_a_sum_is_the_same_to_the_bit_in_any_order_but_for_the_first_part(order, exponent):
    generator = torch.Generator().manual_seed(0)
    parts = torch.randn(9, 11, generator=generator, dtype=torch.float64) * 2.0**exponent
    parts[3] *= 500  # a window may hold far more than the first
    sums = [Sum(11), Sum(11)]
    for found, numbers in zip(sums, (range(8), order), strict=True):
        found.add(parts[8].clone())
        for number in numbers:
            found.add(parts[number].clone())
    assert torch.equal(sums[0].total(), sums[1].total())
    error = (sums[0].total() - parts.sum(0)).abs().max()
    assert error <= len(parts) * 2.0**-36 * parts[8].abs().max()


def test_a_sum_that_begins_with_nothing_takes_what_follows_as_it_is():
    found = Sum(2)
    found.add(torch.zeros(2, dtype=torch.float64))
    found.add(torch.tensor([1e-30, 3.0], dtype=torch.float64))
    assert found.total().tolist() == [1e-30, 3.0]


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
    every = magnitudes**2 * costs.numpy()
    spent = np.where(magnitudes < float(threshold), every, 0).sum()
    assert cost == pytest.approx(spent / 37, rel=1e-9, abs=1e-10 * every.sum())


def spread_magnitudes(seed: int, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return bins of magnitudes over many octaves, zero among them, and what each costs."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3000, generator=generator) * scale
    x *= torch.exp2(-60 * torch.rand(3000, generator=generator))
    x[:9] = 0
    costs = torch.rand(3000, generator=generator, dtype=torch.float64) * 1e3
    return x.abs().view(torch.int32) >> 12, x.double().square() * costs


@given(st.integers(0, 10_000), st.sampled_from([2.0**-90, 1.0, 2.0**60, 2.0**120]))
@settings(max_examples=40)
def test_sums_in_bins_are_the_same_to_the_bit_in_any_order(seed, scale):
    bins, values = spread_magnitudes(seed, scale)
    size = 2**19
    found = binned(bins, values, size)
    order = torch.randperm(len(bins), generator=torch.Generator().manual_seed(seed))
    assert torch.equal(binned(bins[order], values[order], size), found)
    assert found.dtype == torch.float64
    counts, expected = np.bincount(bins, minlength=size), np.bincount(bins, values, minlength=size)
    # Every value is rounded by at most 2⁻⁵⁰ of the largest in its octave.
    largest = np.repeat(expected.reshape(256, -1).max(1), size // 256)
    assert (np.abs(found.numpy() - expected) <= 2.0**-49 * counts * largest).all()


def test_as_many_of_the_largest_as_there_are_do_not_overflow_a_bin():
    largest = torch.full((2**16,), torch.finfo(torch.float32).max)
    bins, values = largest.view(torch.int32) >> 12, largest.double().square()
    found = binned(bins, values, 2**19)
    assert float(found[bins[0]]) == pytest.approx(float(values.sum()), rel=1e-13)
    assert found.count_nonzero() == 1


def test_nothing_dropped_has_threshold_and_cost_0_also_where_there_are_zeros():
    histogram = MagnitudeHistogram(torch.ones(3, dtype=torch.float64))
    histogram.update(torch.tensor([[0.0, 1.0, 2.0], [4.0, 0.0, 8.0]]))
    shares = torch.tensor([0.0, 0.5], dtype=torch.float64)
    thresholds, costs = histogram.below(shares)
    assert thresholds.tolist() == [0, 2]
    assert costs.tolist() == [0, 0.5]
