"""Checks of the Triton kernels on any device; as a module, on Triton's interpreter."""

from __future__ import annotations

import os
import sys
from unittest.mock import patch

import torch

from tests.kernels.cases import (
    assert_close_to_float64,
    assert_close_to_float64_int8,
    draw,
    draw_int8,
    same,
)
from tests.kernels.interpreting import prepare_interpreter
from trimtab_kernels import reference

DTYPES = (torch.float16, torch.bfloat16)
Shapes = tuple[tuple[int, int], ...]
SHAPES: Shapes = ((1, 1), (1, 37), (37, 1), (577, 131))
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
        assert torch.equal(gather_gemv(*on_device, 0.6), found)
        wide = torch.cat([on_device[1], on_device[1]], 1)[:, : shape[1]]
        plain = gather_gemv(on_device[0], wide, None, 0.0)
        assert_close_to_float64(plain.cpu(), x, weight, None)


def check_int8(dtype: torch.dtype, device: str, shapes: Shapes = SHAPES) -> None:
    from trimtab_kernels.sparse_linear.gpu import MAX_TOKENS, gather_gemv, int8_linear

    for index, shape in enumerate(shapes):
        x, weight, scale = draw_int8(*shape, dtype, 5 if index else MAX_TOKENS)
        x[0, 0] = 0
        on_device = x.to(device), weight.to(device), scale.to(device)
        alone = gather_gemv(on_device[0][:1], *on_device[1:2], None, 0.0, on_device[2])
        assert_close_to_float64_int8(alone.cpu(), x[:1], weight, scale)
        assert torch.equal(int8_linear(on_device[0][:1], *on_device[1:]), alone)
        together = int8_linear(*on_device)
        assert_close_to_float64_int8(together.cpu(), x, weight, scale)
        few = on_device[0][2:5].reshape(3, 1, -1)
        found = int8_linear(few, *on_device[1:])
        assert torch.equal(found[:, 0], together[2:5])
        assert torch.equal(int8_linear(*on_device), together)


def check_dropping(dtype: torch.dtype, device: str) -> None:
    """Drop what is below a threshold of a product, within the launch that adds it up."""
    from trimtab_kernels.sparse_linear.gpu import Below, int8_linear

    for tokens in (1, 4):
        x, weight, scale = (part.to(device) for part in draw_int8(77, 131, dtype, tokens))
        whole = int8_linear(x, weight, scale)
        threshold = float(whole.abs().float().median())
        positions = torch.tensor([5, 2, -1, 9][:tokens], device=device)  # the third row is idle
        counts = torch.tensor([1000, 2000], device=device)
        below = Below(positions, threshold, 3, counts)
        expected = reference.keep_above(whole, threshold)
        dense = (positions < 3)[:, None]
        expected = torch.where(dense, whole, expected)
        found = int8_linear(x, weight, scale, below)
        assert torch.equal(found, expected)
        counted = expected[positions >= 0]
        assert counts.tolist() == [1000 + int(counted.count_nonzero()), 2000 + counted.numel()]
        with_nan = int8_linear(x * torch.nan, weight, scale, below)
        assert with_nan.isnan().all()  # no comparison drops it


def check_parts(device: str) -> None:
    """Compare products whose programs have more and fewer weight rows, as GPUs of any size ask."""
    from trimtab_kernels.sparse_linear import gpu

    x, weight, bias = draw(600, 40, torch.bfloat16)
    int8 = draw_int8(600, 40, torch.bfloat16, 3)
    chosen = set()
    for count in (1, 4, 8, 500):
        few = {"PROGRAMS_EACH": 1, "_multiprocessors": lambda _, count=count: count}
        with patch.multiple(gpu, **few):
            chosen.add(gpu.rows_per_part(600, 40, torch.device(device)))
            found = gpu.gather_gemv(x.to(device), weight.to(device), bias.to(device), 0.6)
            assert_close_to_float64(found.cpu(), x, weight, bias, 0.6)
            found = gpu.int8_linear(*(part.to(device) for part in int8))
            assert_close_to_float64_int8(found.cpu(), *int8)
    assert chosen == set(gpu.ROWS)
    with patch.object(gpu, "MAX_BLOCK_PARTS", 4):  # several blocks of partial sums
        found = gpu.gather_gemv(x.to(device), weight.to(device), bias.to(device), 0.6)
        assert_close_to_float64(found.cpu(), x, weight, bias, 0.6)


def check_far_rows(device: str) -> None:
    """Read weight rows that are more than 2**31 entries apart."""
    from trimtab_kernels.sparse_linear.gpu import int8_linear

    x, rows, scale = draw_int8(3, 64, torch.bfloat16, 2)
    apart = 2**30 + 7
    room = torch.empty(2 * apart + 64, dtype=torch.int8, device=device)
    far = room.as_strided((3, 64), (apart, 1))
    far.copy_(rows)
    for tokens in (1, 2):
        found = int8_linear(x[:tokens].to(device), far, scale.to(device))
        assert_close_to_float64_int8(found.cpu(), x[:tokens], rows, scale)


if __name__ == "__main__":
    if not os.environ.get("TRITON_INTERPRET"):
        sys.exit("set TRITON_INTERPRET=1")
    prepare_interpreter()
    for dtype in DTYPES:
        check_selection(dtype, "cpu", (1, 3, 577, 1024))
        check_product(dtype, "cpu")
        check_int8(dtype, "cpu")
        check_dropping(dtype, "cpu")
    check_parts("cpu")
    check_far_rows("cpu")
