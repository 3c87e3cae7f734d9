"""Launches of the library's gather kernel with settings of our choice.

Imported only to run it, as importing Triton is slow.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
import triton
from torch import Tensor

from trimtab_kernels.sparse_linear import gpu, triton_kernels

BLOCKS = ((16, 256), (32, 128), (32, 256), (64, 128))
ROWS = (64, 128, 256)
WARPS = (4, 8)
REGISTERS = (None, 128, 168)


@dataclass(frozen=True)
class Launch:
    """Settings of a launch.

    Parameters
    ----------
    block_rows, block_columns : int
        What a program holds at a time.
    rows : int
        What it adds up.
    num_warps : int
    maxnreg : int or None
        The most registers of a thread; the compiler's own choice if None.
    """

    block_rows: int
    block_columns: int
    rows: int
    num_warps: int
    maxnreg: int | None

    def __str__(self) -> str:
        most = "" if self.maxnreg is None else f", maxnreg {self.maxnreg}"
        block = f"{self.block_rows}x{self.block_columns}"
        return f"{block}, {self.rows} rows, {self.num_warps} warps{most}"

    @property
    def options(self) -> dict[str, object]:
        """What the compiler is told."""
        limit = {} if self.maxnreg is None else {"maxnreg": self.maxnreg}
        return {"num_warps": self.num_warps, **limit, **gpu.OPTIONS}


LAUNCHES = [
    Launch(*block, rows, warps, registers)
    for block, rows, warps, registers in product(BLOCKS, ROWS, WARPS, REGISTERS)
]


def gather(x: Tensor, weight: Tensor, threshold: float, launch: Launch) -> Tensor:
    """Do what `gpu.gather_gemv` does without bias and scale, with these settings."""
    width, columns = weight.shape
    out = torch.empty((*x.shape[:-1], columns), dtype=x.dtype, device=x.device)
    parts = triton.cdiv(width, launch.rows)
    partial = torch.empty((parts, 1, columns), dtype=torch.float32, device=x.device)
    triton_kernels.gather_kernel[(triton.cdiv(columns, launch.block_columns), parts)](
        x, weight, partial, threshold, width, columns, weight.stride(0), launch.rows,
        launch.block_rows, launch.block_columns, **launch.options,
    )  # fmt: skip
    gpu.add_up(partial, None, None, out, gpu.NOTHING)
    return out
