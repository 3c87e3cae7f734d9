"""Launches of the Triton kernels. Imported only to run on a GPU, as importing Triton is slow."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from trimtab_kernels.sparse_linear import triton_kernels

MAX_WIDTH = 16384
"""The widest row that `select` can hold in registers."""

MAX_TOKENS = 16
"""The most tokens that `int8_linear` takes."""

BLOCK_COLUMNS = 128
BLOCK_ROWS = 32
# Weight rows that one program adds up: the most of these that leave every multiprocessor this many
# programs.
ROWS = (256, 128, 64, BLOCK_ROWS)
PROGRAMS_EACH = 4
MULTIPROCESSORS = 128  # off the GPU, on Triton's interpreter
SUM_COLUMNS = 32
MAX_BLOCK_PARTS = 32
# Triton 3.9 warns unless this is set, since 3.10 changes its default.
OPTIONS = {"enable_fp_fusion": True}
# Left to itself, the assembler takes so few registers that each load waits for the one before.
GATHER_OPTIONS = {"maxnreg": 128, **OPTIONS}
# The bits of infinity plus one: the rank of every NaN among magnitudes.
NAN_RANK = {torch.float16: 0x7C01, torch.bfloat16: 0x7F81, torch.float32: 0x7F800001}


class Below(NamedTuple):
    """What a product drops of its own result.

    Parameters
    ----------
    positions, dense_prefix, counts
        As for `select`; nothing is dropped without positions.
    threshold : float
        The magnitude below which entries are dropped.
    """

    positions: Tensor | None = None
    threshold: float = 0.0
    dense_prefix: int = 0
    counts: Tensor | None = None


NOTHING = Below()


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
            *key_of(x.dtype), block,
            num_warps=max(1, min(16, block // 512)), **OPTIONS,
        )  # fmt: skip
    return out


def key_of(dtype: torch.dtype) -> tuple[int, int]:
    """Return, of magnitudes as integers, the rank of a NaN, and the bits."""
    return NAN_RANK[dtype], 8 * dtype.itemsize - 1


def gather_gemv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    threshold: float,
    scale: Tensor | None = None,
    out: Tensor | None = None,
    below: Below = NOTHING,
) -> Tensor:
    """Return the product of one token with a weight; `x` is of shape [..., d] with one row.

    See `ops.sparse_linear`, and for `scale`, a factor per column, `ops.int8_linear`. The product is
    written to `out`, if given, whose last stride is 1, without what `below` says.
    """
    if out is None:
        out = x.new_empty((*x.shape[:-1], weight.shape[1]))
    add_up(gathered(x, weight, threshold), bias, scale, out, below)
    return out


def gathered(x: Tensor, weight: Tensor, threshold: float) -> Tensor:
    """Return the parts of the product of one token with a weight, float32 [parts, 1, columns].

    See `ops.sparse_linear`; their sum is the product.
    """
    partial, rows = _room(x, weight, 1)
    width, columns = weight.shape
    if columns:
        triton_kernels.gather_kernel[(triton.cdiv(columns, BLOCK_COLUMNS), len(partial))](
            x.contiguous(), weight, partial, threshold, width, columns, weight.stride(0),
            rows, BLOCK_ROWS, BLOCK_COLUMNS, **GATHER_OPTIONS,
        )  # fmt: skip
    return partial


def int8_linear(x: Tensor, weight: Tensor, scale: Tensor, below: Below = NOTHING) -> Tensor:
    """Return the product of up to `MAX_TOKENS` tokens with an int8 weight; see `ops.int8_linear`.

    What `below` says is dropped of it. A token's result has the same bits whichever others are
    beside it, unless it is alone.
    """
    tokens = x.shape[:-1].numel()
    if tokens == 1:
        return gather_gemv(x, weight, None, 0.0, scale, below=below)
    width, columns = weight.shape
    out = x.new_empty((*x.shape[:-1], columns))
    if tokens and columns:
        partial, rows = _room(x, weight, tokens)
        triton_kernels.dot_kernel[(triton.cdiv(columns, BLOCK_COLUMNS), len(partial))](
            x.contiguous(), weight, partial, tokens, width, columns, weight.stride(0),
            rows, BLOCK_ROWS, BLOCK_COLUMNS, MAX_TOKENS, **OPTIONS,
        )  # fmt: skip
        add_up(partial, None, scale, out, below)
    return out


def block_of(parts: int) -> int:
    """Return how many parts of a product a program loads at once."""
    return min(MAX_BLOCK_PARTS, triton.next_power_of_2(parts))


def rows_per_part(width: int, columns: int, device: torch.device) -> int:
    """Return how many weight rows one program adds up; on one device the shape alone decides."""
    enough = PROGRAMS_EACH * _multiprocessors(device)
    blocks = triton.cdiv(columns, BLOCK_COLUMNS)
    fitting = (rows for rows in ROWS if triton.cdiv(width, rows) * blocks >= enough)
    return next(fitting, BLOCK_ROWS)


def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return MULTIPROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


def _room(x: Tensor, weight: Tensor, tokens: int) -> tuple[Tensor, int]:
    """Return room for the parts of a product, and how many weight rows each adds up."""
    width, columns = weight.shape
    rows = rows_per_part(width, columns, x.device)
    shape = triton.cdiv(width, rows), tokens, columns
    return x.new_empty(shape, dtype=torch.float32), rows


def add_up(
    partial: Tensor, bias: Tensor | None, scale: Tensor | None, out: Tensor, below: Below
) -> None:
    """Write to `out` the sum of a product's parts [parts, tokens, columns]; see `gather_gemv`."""
    parts, tokens, columns = partial.shape
    bias, scale = (None if one is None else one.contiguous() for one in (bias, scale))
    if columns:
        triton_kernels.sum_kernel[(triton.cdiv(columns, SUM_COLUMNS), tokens)](
            partial, bias, scale, out, below.positions, below.counts, columns, parts,
            below.threshold, below.dense_prefix, block_of(parts), SUM_COLUMNS, **OPTIONS,
        )  # fmt: skip
