"""Products with int8 weights."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.cases import SHAPES, assert_close_to_float64_int8, draw_int8
from trimtab_kernels.sparse_linear import int8_linear

DTYPES = [torch.float32, torch.bfloat16, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 2, 8, 9])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_product_with_scaled_columns(dtype, tokens, shape):
    x, weight, scale = draw_int8(*shape, dtype, tokens)
    found = int8_linear(x, weight, scale)
    assert_close_to_float64_int8(found, x, weight, scale)
    assert int8_linear(x[None, None], weight, scale).shape == (1, 1, tokens, shape[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("columns", "tokens"), [(131, 1), (131, 8), (8455, 1)])
def test_it_repeats_bit_for_bit_with_any_threads(threads, dtype, columns, tokens):
    x, weight, scale = draw_int8(577, columns, dtype, tokens)
    first = int8_linear(x, weight, scale)
    assert_close_to_float64_int8(first, x, weight, scale)
    assert all(torch.equal(int8_linear(x, weight, scale), first) for _ in range(5))


def test_strided_inputs_are_read_correctly():
    x, weight, scale = draw_int8(37, 53, torch.float32, 2)
    strided = torch.stack([x, x], dim=-1)[..., 0]
    assert torch.equal(int8_linear(strided[:1], weight, scale), int8_linear(x[:1], weight, scale))
    twice = torch.stack([scale, scale], dim=-1)[..., 0]
    assert torch.equal(int8_linear(x[:1], weight, twice), int8_linear(x[:1], weight, scale))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda x, w, s: (x, w.float(), s),
            "weight is torch.float32 on cpu; expected torch.int8",
        ),
        (
            lambda x, w, s: (x, w.t().contiguous().t(), s),
            r"strides \[1, 37\]; expected contiguous rows",
        ),
        (lambda x, w, s: (x, w[:-1], s), r"weight has shape \[36, 53\]; expected \[37, n\]"),
        (lambda x, w, s: (x, w, s.double()), r"scale is torch.float64 of shape \[53\]"),
        (lambda x, w, s: (x, w[0], s), r"weight has shape \[53\]; expected \[37, n\]"),
        (lambda x, w, s: (x, w, s[None]), r"scale is torch.float32 of shape \[1, 53\]"),
        (lambda x, w, s: (x[0, 0], w, s), r"no dimension; expected \[..., d\]"),
        (lambda x, w, s: (x, w, s[:-1]), r"expected torch.float32 of shape \[53\]"),
        (lambda x, w, s: (x.int(), w, s), "x is torch.int32; expected float32"),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_arguments_that_do_not_fit_are_refused(change, message, device):
    arguments = change(*(tensor.to(device) for tensor in draw_int8(37, 53, torch.float32)))
    with pytest.raises(ValueError, match=message.replace("cpu", device)):
        int8_linear(*arguments)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [-128, 127])
def test_the_extremes_of_int8_are_ordinary_numbers(dtype, value):
    weight, scale = torch.full((37, 53), value, dtype=torch.int8), torch.full((53,), 0.5)
    found = int8_linear(torch.ones(1, 37, dtype=dtype), weight, scale)
    assert torch.equal(found, torch.full((1, 53), 37 * value / 2).to(dtype))


def test_the_weight_may_be_columns_of_a_wider_one():
    x, weight, scale = draw_int8(65, 64, torch.float32)
    part = weight[:, 8:41], scale[8:41]
    assert torch.equal(int8_linear(x, *part), int8_linear(x, part[0].clone(), part[1]))


def test_sizes_of_zero():
    for tokens, d, n in ((0, 3, 5), (1, 3, 0), (1, 0, 5), (9, 0, 5)):
        weight = torch.ones(d, n, dtype=torch.int8)
        found = int8_linear(torch.ones(tokens, d), weight, torch.ones(n))
        assert torch.equal(found, torch.full((tokens, n), float(d)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 9])
def test_the_operator_passes_pytorchs_checks(dtype, tokens):
    arguments = tuple(draw_int8(24, 17, dtype, tokens))
    torch.library.opcheck(torch.ops.trimtab.int8_linear.default, arguments)
    compiled = torch.compile(
        lambda x: int8_linear(x, *arguments[1:]), fullgraph=True, backend="aot_eager"
    )
    assert torch.equal(compiled(arguments[0]), int8_linear(*arguments))


def test_export_traces_through_it():
    class Transform(torch.nn.Module):
        def forward(self, x, weight, scale):
            return int8_linear(x, weight, scale)

    arguments = tuple(draw_int8(24, 17, torch.float32))
    exported = torch.export.export(Transform(), arguments)
    assert torch.equal(exported.module()(*arguments), int8_linear(*arguments))
    assert any("trimtab.int8_linear" in str(node.target) for node in exported.graph.nodes)
