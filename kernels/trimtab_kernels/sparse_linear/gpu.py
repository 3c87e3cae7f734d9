"""Launches of the Triton kernels. Imported only to run on a GPU, as importing Triton is slow."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from trimtab_kernels.sparse_linear import triton_kernels

MAX_WIDTH = 16384
"""The widest row that `select` can hold in registers."""

BLOCK_COLUMNS = 128
BLOCK_ROWS = 32
SUM_COLUMNS = 128
# Enough programs to keep the memory of a large GPU busy; products with fewer are split further.
ENOUGH_PROGRAMS = 512
# Triton 3.9 warns unless this is set, since 3.10 changes its default.
OPTIONS = {"enable_fp_fusion": True}
# The bits of infinity plus one: the rank of every NaN among magnitudes.
NAN_RANK = {torch.float16: 0x7C01, torch.bfloat16: 0x7F81, torch.float32: 0x7F800001}


def select(
    x: Tensor,
    keep: int,
    threshold: float = 0.0,
    positions: Tensor | None = None,
    dense_prefix: int = 0,
    counts: Tensor | None = None,
) -> Tensor:
    """Return `x`, of shape [..., d], with at most `keep` entries per row, none below `threshold`.

    See `ops.keep_above`; d is at most `MAX_WIDTH`, and the dtype float16, bfloat16 or float32.

    Parameters
    ----------
    positions : Tensor, optional
        int64 of shape [rows]: below `dense_prefix`, a row stays as it is.
    counts : Tensor, optional
        With positions: int64 of shape [2], to which is added how many entries of rows at positions
        from 0 on are not zero afterwards, and how many there are.
    """
    width = x.shape[-1]
    source = x.contiguous()
    out = torch.empty_like(source)
    if x.numel():
        block = triton.next_power_of_2(width)
        triton_kernels.select_kernel[(x.numel() // width,)](
            source, out, positions, counts, threshold, keep, width, dense_prefix,
            NAN_RANK[x.dtype], 8 * x.dtype.itemsize - 1, block,
            num_warps=max(1, min(16, block // 512)), **OPTIONS,
        )  # fmt: skip
    return out


def gather_gemv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    threshold: float,
    scale: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Return the product of one token with a weight; `x` is of shape [..., d] with one row.

    See `ops.sparse_linear`, and for `scale`, a factor per column, `ops.int8_linear`. The product is
    written to `out`, if given, whose last stride is 1.
    """
    width, columns = weight.shape
    if out is None:
        out = torch.empty((*x.shape[:-1], columns), dtype=x.dtype, device=x.device)
    if not columns:
        return out
    rows = rows_per_part(width, columns)
    parts = triton.cdiv(width, rows)
    partial = torch.empty((parts, columns), dtype=torch.float32, device=x.device)
    triton_kernels.gather_kernel[(triton.cdiv(columns, BLOCK_COLUMNS), parts)](
        x.contiguous(), weight, partial, threshold, width, columns, weight.stride(0),
        rows, BLOCK_ROWS, BLOCK_COLUMNS, **OPTIONS,
    )  # fmt: skip
    offset = partial if bias is None else bias.contiguous()
    factor = partial if scale is None else scale.contiguous()
    triton_kernels.sum_kernel[(triton.cdiv(columns, SUM_COLUMNS),)](
        partial, offset, factor, out, columns, parts, bias is not None, scale is not None,
        SUM_COLUMNS, **OPTIONS,
    )  # fmt: skip
    return out


def rows_per_part(width: int, columns: int) -> int:
    """Return how many weight rows one program adds up; it depends on the shape alone."""
    coarse = 4 * BLOCK_ROWS
    programs = triton.cdiv(width, coarse) * triton.cdiv(columns, BLOCK_COLUMNS)
    return coarse if programs >= ENOUGH_PROGRAMS else BLOCK_ROWS
