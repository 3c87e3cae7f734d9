"""Inputs and comparisons shared by several test modules."""

from __future__ import annotations

import torch
from torch import Tensor

from trimtab_kernels import reference

# Odd widths, single rows and columns, and more columns than one thread processes at a time.
SHAPES = [(1, 1), (1, 37), (37, 1), (7, 16), (577, 131), (129, 1000), (64, 8455)]


def draw(d: int, n: int, dtype: torch.dtype, tokens: int = 1, seed: int = 0) -> list[Tensor]:
    """Return an input [tokens, d], a weight [d, n] and a bias [n]."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(*shape, generator=generator).to(dtype) for shape in ((tokens, d), (d, n), (n,))
    ]


def assert_close_to_float64(
    found: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, threshold: float = 0.0
) -> None:
    """Compare a product with float64, within the error of float32 sums and one rounding."""
    masked = reference.keep_above(x, threshold).double()
    expected = masked @ weight.double()
    scale = masked.abs() @ weight.double().abs()
    if bias is not None:
        expected, scale = expected + bias.double(), scale + bias.double().abs()
    assert found.dtype == x.dtype
    assert found.shape == expected.shape
    sums = (x.shape[-1] + 1) * torch.finfo(torch.float32).eps * scale
    assert ((found - expected).abs() <= sums + torch.finfo(x.dtype).eps * expected.abs()).all()


def draw_int8(d: int, n: int, dtype: torch.dtype, tokens: int = 1) -> list[Tensor]:
    """Return an input [tokens, d], an int8 weight [d, n] that holds every value, and its scale."""
    generator = torch.Generator().manual_seed(d + n)
    weight = torch.randint(-128, 128, (d, n), generator=generator, dtype=torch.int8)
    x = torch.randn(tokens, d, generator=generator).to(dtype)
    return [x, weight, torch.rand(n, generator=generator) + 0.01]


def assert_close_to_float64_int8(found: Tensor, x: Tensor, weight: Tensor, scale: Tensor) -> None:
    """Like `assert_close_to_float64`, for `int8_linear`; a dense product may round twice."""
    expected = (x.double() @ weight.double()) * scale.double()
    sizes = (x.double().abs() @ weight.double().abs()) * scale.double()
    assert found.dtype == x.dtype
    assert found.shape == expected.shape
    sums = (x.shape[-1] + 2) * torch.finfo(torch.float32).eps * sizes
    rounding = 2 * torch.finfo(x.dtype).eps * expected.abs()
    assert ((found - expected).abs() <= sums + rounding).all()


def same(first: Tensor, second: Tensor) -> bool:
    """Return whether two tensors are equal, with NaN equal to NaN."""
    return first.dtype == second.dtype and torch.equal(
        first.nan_to_num(nan=7.0), second.nan_to_num(nan=7.0)
    )
