"""The definitions of the kernels."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trimtab_kernels.reference import keep_above, keep_topk, sparse_linear


@st.composite
def rows_and_counts(draw):
    width = draw(st.integers(1, 40))
    # Few distinct magnitudes, so that ties and zeros are common.
    values = st.lists(st.integers(-2, 2), min_size=width, max_size=width)
    rows = draw(st.lists(values, min_size=1, max_size=4))
    return torch.tensor(rows, dtype=torch.float32), draw(st.integers(0, width))


@given(rows_and_counts())
def test_topk_keeps_exactly_k_positions_and_none_smaller_than_a_dropped_one(case):
    x, keep = case
    marked = x + torch.sign(x) * 10 + (x == 0) * 5  # no zeros: every kept position shows
    kept = keep_topk(marked, keep) != 0
    assert (kept.sum(-1) == keep).all()
    for row, mask in zip(marked.abs(), kept, strict=True):
        if 0 < keep < len(row):
            assert row[mask].min() >= row[~mask].max()


@given(rows_and_counts())
def test_topk_leaves_what_it_keeps_as_it_was(case):
    x, keep = case
    result = keep_topk(x, keep)
    assert ((result == x) | (result == 0)).all()


def test_topk_drops_nothing_at_full_width():
    x = torch.randn(3, 5)
    assert keep_topk(x, 5) is x


@pytest.mark.parametrize("keep", [-1, 6])
def test_topk_refuses_a_count_outside_the_row(keep):
    with pytest.raises(ValueError, match=rf"keep={keep} is outside \[0, 5\]"):
        keep_topk(torch.randn(3, 5), keep)


def test_of_equal_magnitudes_the_lowest_index_wins():
    x = torch.tensor([1.0, -3.0, 2.0, 3.0, -2.0, 2.0])
    assert keep_topk(x, 1).tolist() == [0, -3, 0, 0, 0, 0]
    assert keep_topk(x, 4).tolist() == [0, -3, 2, 3, -2, 0]


def test_nan_is_the_largest():
    x = torch.tensor([torch.inf, 1.0, torch.nan, 5.0])
    kept = keep_topk(x, 2)
    assert kept[2].isnan()
    assert kept[[0, 1, 3]].tolist() == [torch.inf, 0, 0]
    assert keep_above(x, 2.0).isnan().tolist() == [False, False, True, False]


def test_threshold_keeps_what_reaches_it():
    x = torch.tensor([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0])
    assert keep_above(x, 1.0).tolist() == [-2, -1, 0, 0, 0, 1, 2]
    assert torch.equal(keep_above(x, 0.0), x)


def test_a_cap_keeps_the_largest_of_what_reaches_the_threshold():
    x = torch.tensor([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0])
    assert keep_above(x, 1.0, cap=3).tolist() == [-2, -1, 0, 0, 0, 0, 2]
    assert torch.equal(keep_above(x, 1.0, cap=99), keep_above(x, 1.0))
    assert not keep_above(x, 1.0, cap=0).any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_selections_keep_the_dtype(dtype):
    x = torch.randn(2, 8, dtype=dtype)
    assert keep_topk(x, 3).dtype == keep_above(x, 0.5).dtype == dtype


def test_a_product_is_of_the_entries_that_reach_the_threshold():
    x, weight, bias = torch.tensor([[3.0, 0.5]]), torch.tensor([[1.0, 2.0], [10.0, 20.0]]), None
    assert sparse_linear(x, weight, bias).tolist() == [[8, 16]]
    assert sparse_linear(x, weight, torch.tensor([1.0, 1.0]), 1.0).tolist() == [[4, 7]]
