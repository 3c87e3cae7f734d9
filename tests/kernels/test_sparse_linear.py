"""Products that skip dropped entries, compared with float64."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.cases import SHAPES, assert_close_to_float64, draw
from trimtab_kernels.sparse_linear import keep_above, keep_topk, sparse_linear

DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 7, 8, 9, 33])
def test_products_agree_with_float64_at_odd_shapes(threads, dtype, shape, tokens):
    x, weight, bias = draw(*shape, dtype, tokens)
    kept = keep_topk(x, round(0.6 * shape[0]))
    assert_close_to_float64(sparse_linear(kept, weight), kept, weight, None)
    assert_close_to_float64(sparse_linear(x, weight, bias, 0.5), x, weight, bias, 0.5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 2, 8, 9])
def test_results_repeat_bit_for_bit(threads, dtype, tokens):
    x, weight, bias = draw(500, 5003, dtype, tokens)
    first = sparse_linear(x, weight, bias, 0.5)
    for _ in range(5):
        assert torch.equal(sparse_linear(x, weight, bias, 0.5), first)


@pytest.mark.parametrize("columns", [7, 1101])
@pytest.mark.parametrize("tokens", range(2, 9))  # more of them are multiplied by the library
def test_no_number_of_tokens_changes_the_bits_of_one(threads, tokens, columns):
    x, weight, bias = draw(143, columns, torch.float32, tokens)
    assert (x != 0).all()  # what one drops and another keeps would be added as zero
    rows = [sparse_linear(row[None], weight, bias) for row in x]
    assert torch.equal(sparse_linear(x, weight, bias), torch.cat(rows))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_fused_threshold_equals_a_separate_selection(dtype):
    x, weight, bias = draw(577, 131, dtype)
    fused = sparse_linear(x, weight, bias, 0.7)
    assert torch.equal(fused, sparse_linear(keep_above(x, 0.7), weight, bias))


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("poison", [torch.inf, -torch.inf, torch.nan])
def test_weight_rows_of_dropped_entries_are_not_read(threads, dtype, poison):
    x, weight, bias = draw(577, 131, dtype)
    x[0, 3], x[0, 4] = 0.0, -0.0
    dropped = (x[0].abs() < 0.7).nonzero()[:, 0]
    poisoned = weight.index_fill(0, dropped, poison)
    expected = sparse_linear(x, weight, bias, 0.7)
    assert expected.isfinite().all()
    assert torch.equal(sparse_linear(x, poisoned, bias, 0.7), expected)
    assert torch.equal(sparse_linear(keep_above(x, 0.7), poisoned, bias), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_kept_gives_the_bias(dtype):
    x, weight, bias = draw(64, 33, dtype)
    assert torch.equal(sparse_linear(keep_topk(x, 0), weight, bias)[0], bias)
    assert not sparse_linear(x, weight, threshold=torch.inf).any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_everything_kept_is_the_dense_product(dtype):
    x, weight, bias = draw(129, 77, dtype)
    assert_close_to_float64(sparse_linear(keep_topk(x, 129), weight, bias), x, weight, bias)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_infinity_in_the_input_reach_the_result(dtype):
    x, weight, _ = draw(64, 33, dtype)
    for value in (torch.nan, torch.inf):
        x[0, 5] = value
        assert not sparse_linear(keep_topk(x, 3), weight, threshold=0.5).isfinite().any()


def test_leading_dimensions_and_strides_of_the_input_do_not_matter():
    x, weight, bias = draw(65, 33, torch.float32, 6)
    expected = sparse_linear(x[:1], weight, bias, 0.5)
    assert torch.equal(sparse_linear(x[:1, None], weight, bias, 0.5), expected[:, None])
    assert torch.equal(sparse_linear(x[0], weight, bias, 0.5), expected[0])
    spread = torch.stack([x, x], -1)[..., 0]
    assert not spread.is_contiguous()
    assert torch.equal(sparse_linear(spread[:1], weight, bias, 0.5), expected)
    many = sparse_linear(x.view(2, 3, 65), weight, bias, 0.5)
    assert torch.equal(many, sparse_linear(x, weight, bias, 0.5).view(2, 3, 33))


def test_the_weight_may_be_columns_of_a_wider_one():
    x, weight, _ = draw(65, 64, torch.float32)
    part = weight[:, 8:41]
    assert torch.equal(sparse_linear(x, part), sparse_linear(x, part.clone()))


def test_sizes_of_zero():
    assert sparse_linear(torch.ones(0, 3), torch.ones(3, 5)).shape == (0, 5)
    assert sparse_linear(torch.ones(1, 3), torch.ones(3, 0)).shape == (1, 0)
    for tokens in (1, 9):
        empty = sparse_linear(torch.ones(tokens, 0), torch.ones(0, 5), torch.ones(5))
        assert torch.equal(empty, torch.ones(tokens, 5))


X, W = torch.ones(1, 5), torch.ones(5, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X, torch.ones(4, 3)), r"weight has shape \[4, 3\]; expected \[5, n\]"),
        ((X, torch.ones(5)), r"weight has shape \[5\]; expected \[5, n\]"),
        ((X, W.double()), "weight is torch.float64 on cpu; expected torch.float32 on cpu"),
        ((X, torch.ones(3, 5).t()), r"weight has strides \[1, 5\]; expected contiguous rows"),
        ((X, W, torch.ones(2)), r"bias has shape \[2\]; expected \[3\]"),
        ((X, W, torch.ones(3, 1)), r"bias has shape \[3, 1\]; expected \[3\]"),
        ((X, W, torch.ones(3).half()), "bias is torch.float16 on cpu; expected torch.float32"),
        ((X.long(), W), "x is torch.int64; expected float32"),
        ((torch.tensor(1.0), W), r"no dimension; expected \[..., d\]"),
        ((X, W, None, -1.0), "threshold=-1.*; expected .* at least 0"),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_does_not_fit_is_refused(device, arguments, message):
    moved = [item.to(device) if isinstance(item, torch.Tensor) else item for item in arguments]
    with pytest.raises(ValueError, match=message.replace("on cpu", f"on {device}")):
        sparse_linear(*moved)
