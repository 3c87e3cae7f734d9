"""Selection of the largest entries, compared with sorting."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.cases import same
from trimtab_kernels import reference
from trimtab_kernels.sparse_linear import keep_above, keep_topk

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
# Values that every dtype represents exactly, with ties, both zeros, infinities and NaN.
ENTRIES = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, math.inf, -math.inf, math.nan]),
    st.integers(-200, 200).map(lambda n: n / 8),
)


@st.composite
def rows_and_counts(draw):
    width = draw(st.integers(1, 70))
    row = st.lists(ENTRIES, min_size=width, max_size=width)
    rows = draw(st.lists(row, min_size=1, max_size=3))
    return rows, draw(st.integers(0, width))


def kept_by_sorting(rows, keep, threshold=0.0):
    """Return what stays, by sorting (not NaN, -magnitude, index) in NumPy."""
    x = np.array(rows)
    result = np.zeros_like(x)
    for source, target in zip(x, result, strict=True):
        magnitude = np.nan_to_num(np.abs(source), nan=0.0, posinf=np.inf)
        order = np.lexsort((np.arange(len(source)), -magnitude, ~np.isnan(source)))
        kept = [i for i in order if not abs(source[i]) < threshold][:keep]
        target[kept] = source[kept]
    return torch.from_numpy(result)


@pytest.mark.parametrize("dtype", DTYPES)
@given(case=rows_and_counts(), threshold=st.sampled_from([0.0, 0.5, 2.0, math.inf]))
def test_selections_agree_with_sorting(dtype, case, threshold):
    rows, keep = case
    x = torch.tensor(rows, dtype=dtype)
    expected = kept_by_sorting(rows, keep).to(dtype)
    assert same(keep_topk(x, keep), expected)
    assert same(reference.keep_topk(x, keep), expected)
    expected = kept_by_sorting(rows, keep, threshold).to(dtype)
    assert same(keep_above(x, threshold, keep), expected)
    assert same(reference.keep_above(x, threshold, keep), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 2, 576, 1537, 11008])
def test_exactly_k_are_kept(dtype, width):
    x = torch.randn(2, width, generator=torch.Generator().manual_seed(width)).to(dtype)
    x[x == 0] = 1
    for keep in {0, 1, width // 2, width - 1, width}:
        assert ((keep_topk(x, keep) != 0).sum(-1) == keep).all()
        assert torch.equal(keep_topk(x, keep), reference.keep_topk(x, keep))


def test_many_rows_are_selected_one_by_one(all_cores):
    x = torch.randn(500, 97)
    assert torch.equal(keep_topk(x, 40), torch.stack([keep_topk(row, 40) for row in x]))


def test_the_last_dimension_is_selected_whatever_the_strides():
    x = torch.randn(6, 5, 9).transpose(0, 2)
    assert not x.is_contiguous()
    assert torch.equal(keep_topk(x, 2), reference.keep_topk(x, 2))
    assert torch.equal(keep_above(x, 0.5), reference.keep_above(x, 0.5))


def test_nothing_aliases_the_input():
    x = torch.randn(2, 5)
    for result in (keep_topk(x, 2), keep_above(x, 0.0), torch.ops.trimtab.keep_topk(x, 5)):
        result.fill_(7)
        assert (x != 7).all()
    assert keep_topk(x, 5) is x


def test_empty_rows_and_no_rows():
    assert keep_topk(torch.ones(3, 0), 0).shape == (3, 0)
    assert keep_above(torch.ones(0, 3), 1.0).shape == (0, 3)


def test_magnitudes_are_compared_with_the_threshold_in_float32():
    x = torch.tensor([0.1, 0.2], dtype=torch.bfloat16)  # 0.1001 and 0.2002
    assert keep_above(x, 0.1).tolist() == x.tolist()
    assert keep_above(x, 0.10015)[0] == 0
    assert torch.equal(keep_above(x, 0.10015), reference.keep_above(x, 0.10015))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: keep_topk(torch.ones(2, 5), -1), r"keep=-1 is outside \[0, 5\]"),
        (lambda: keep_topk(torch.ones(2, 5), 6), r"keep=6 is outside \[0, 5\]"),
        (lambda: keep_topk(torch.ones(2, 5, dtype=torch.int32), 2), "x is torch.int32; expected"),
        (lambda: keep_topk(torch.tensor(1.0), 0), r"no dimension; expected \[..., d\]"),
        (lambda: keep_above(torch.ones(5), -0.5), "threshold=-0.5; expected .* at least 0"),
        (lambda: keep_above(torch.ones(5), math.nan), "threshold=nan; expected .* at least 0"),
        (lambda: keep_above(torch.ones(5), 1.0, -2), "cap=-2; expected at least 0"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
