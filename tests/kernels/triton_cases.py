"""Checks of the Triton kernels on any device; as a module, on Triton's interpreter."""

from __future__ import annotations

import os
import sys

import torch

from tests.kernels.cases import (
    assert_close_to_float64,
    assert_close_to_float64_int8,
    draw,
    draw_int8,
    same,
)
from trimtab_kernels import reference

DTYPES = (torch.float16, torch.bfloat16)
Shapes = tuple[tuple[int, int], ...]
SHAPES: Shapes = ((1, 1), (1, 37), (37, 1), (577, 131), (1000, 257))
LARGE: Shapes = ((4096, 11008), (11008, 4096), (4096, 4096))  # of a 7B


def check_selection(dtype: torch.dtype, device: str, widths: tuple[int, ...]) -> None:
    from trimtab_kernels.sparse_linear.gpu import select

    for width in widths:
        x = torch.randn(3, width, generator=torch.Generator().manual_seed(width)).to(dtype)
        x[1] = (x[1] * 2).round()  # so that ties and both zeros are common
        x[2, :: max(1, width // 5)] = torch.nan
        x[2, width // 2] = -torch.inf
        on_device = x.to(device)
        for keep in {0, 1, width // 2, width - 1, width}:
            found = select(on_device, keep).cpu()
            assert same(found, reference.keep_topk(x, keep)), (width, keep)
            for threshold in (0.5, torch.inf):
                found = select(on_device, keep, threshold).cpu()
                assert same(found, reference.keep_above(x, threshold, keep)), (width, keep)


def check_product(dtype: torch.dtype, device: str, shapes: Shapes = SHAPES) -> None:
    from trimtab_kernels.sparse_linear.gpu import gather_gemv

    for shape in shapes:
        x, weight, bias = draw(*shape, dtype)
        dropped = (x[0].abs() < 0.6).nonzero()[:, 0]
        on_device = x.to(device), weight.to(device), bias.to(device)
        poisoned = weight.index_fill(0, dropped, torch.nan).to(device)
        found = gather_gemv(*on_device, 0.6)
        assert_close_to_float64(found.cpu(), x, weight, bias, 0.6)
        assert torch.equal(gather_gemv(on_device[0], poisoned, on_device[2], 0.6), found)
        masked = reference.keep_above(x, 0.6).to(device)
        assert torch.equal(gather_gemv(masked, poisoned, on_device[2], 0.0), found)
        for _ in range(3):
            assert torch.equal(gather_gemv(*on_device, 0.6), found)
        wide = torch.cat([on_device[1], on_device[1]], 1)[:, : shape[1]]
        plain = gather_gemv(on_device[0], wide, None, 0.0)
        assert_close_to_float64(plain.cpu(), x, weight, None)


def check_int8(dtype: torch.dtype, device: str, shapes: Shapes = SHAPES) -> None:
    from trimtab_kernels.sparse_linear.gpu import gather_gemv

    for shape in shapes:
        x, weight, scale = draw_int8(*shape, dtype)
        x[0, 0] = 0
        on_device = x.to(device), weight.to(device), scale.to(device)
        found = gather_gemv(*on_device[:2], None, 0.0, on_device[2])
        assert_close_to_float64_int8(found.cpu(), x, weight, scale)
        assert torch.equal(gather_gemv(*on_device[:2], None, 0.0, on_device[2]), found)


if __name__ == "__main__":
    if not os.environ.get("TRITON_INTERPRET"):
        sys.exit("set TRITON_INTERPRET=1")
    for dtype in DTYPES:
        check_selection(dtype, "cpu", (1, 3, 577, 1024))
        check_product(dtype, "cpu")
        check_int8(dtype, "cpu")
