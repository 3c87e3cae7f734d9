"""Products of pairs of bfloat16 numbers: the code for processors that have an instruction for them.

Here it runs on any processor, with the instruction written out where there is none.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from trimtab_kernels import build
from trimtab_kernels.decode_step import cpu

SOURCE = Path(__file__).with_name("pairs.cpp")
PAIRS = build.CpuLibrary(name="pairs", sources=(SOURCE, *cpu.LIBRARY.sources[1:]), seconds=15)


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    if reason := build.load(PAIRS):
        pytest.skip(reason)
    return ctypes.CDLL(str(PAIRS.path))


def normal(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).bfloat16()


def dense(library: ctypes.CDLL, x: Tensor, weight: Tensor) -> Tensor:
    """Return x @ weight.T for contiguous bfloat16 tensors."""
    out = torch.full((len(x), len(weight)), torch.nan)
    sizes = [ctypes.c_int64(number) for number in (*x.shape, len(weight))]
    library.dense(
        ctypes.c_void_p(x.data_ptr()), sizes[0], sizes[1], ctypes.c_void_p(weight.data_ptr()),
        sizes[2], ctypes.c_void_p(out.data_ptr()),
    )  # fmt: skip
    return out


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 8, 9, 17])
@pytest.mark.parametrize("width", [1, 31, 64, 100])
@pytest.mark.parametrize("outputs", [1, 5, 40])
def test_dense_products_are_those_of_float64(library, rows, width, outputs):
    x, weight = normal(rows, width), normal(outputs, width)
    expected = x.double() @ weight.double().T
    assert_close(dense(library, x, weight).double(), expected, rtol=1e-5, atol=1e-4)


def test_rows_beside_a_row_change_no_bit_of_it(library):
    x, weight = normal(9, 128), normal(128, 128)
    together = dense(library, x, weight)
    for rows in (1, 2, 3, 4, 5, 8):
        assert torch.equal(dense(library, x[:rows].contiguous(), weight), together[:rows])
    assert torch.equal(dense(library, x[3:4].contiguous(), weight), together[3:4])


def test_what_is_multiplied_is_rounded_as_pytorch_rounds(library):
    numbers = torch.cat(
        [normal(500).float() * 1.0037, torch.tensor([0.0, -0.0, torch.inf, 1e-40, 3.4e38])]
    )
    expected = numbers.bfloat16().float()
    library.rounded(ctypes.c_void_p(numbers.data_ptr()), ctypes.c_int64(len(numbers)))
    assert torch.equal(numbers, expected)
