"""The design of TEAL's kernel (arXiv 2408.14690), to compare ours with: not used elsewhere.

Activations are compared with the threshold within the product, so that there is no selection before
it. A program multiplies one tile of the weight, whose rows belong to activations and are contiguous
(the paper stores weights column-major), and loads those of activations above the threshold alone.
The tiles of a column are added by atomics, in any order, so that results do not repeat bit for bit.

Imported only to run it, as importing Triton is slow.
"""
# mypy: disable-error-code="no-untyped-def"

import torch
import triton
import triton.language as tl
from torch import Tensor

from trimtab_kernels.sparse_linear.gpu import OPTIONS

# Rows and columns of a tile, and warps. The fastest is what ours is compared with.
TILES = ((16, 256, 4), (32, 128, 4), (32, 256, 4), (64, 128, 8))


@triton.jit
def teal_kernel(
    x_ptr,
    weight_ptr,
    out_ptr,
    threshold,
    width,
    columns,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """Add the products of one tile to the output."""
    column = tl.program_id(0) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    row = tl.program_id(1) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    inside = column < columns
    x = tl.load(x_ptr + row, mask=row < width, other=0.0, eviction_policy="evict_last")
    x = x.to(tl.float32)
    kept = tl.abs(x) > threshold
    address = weight_ptr + row.to(tl.int64)[:, None] * columns + column[None, :]
    mask = kept[:, None] & inside[None, :]
    weight = tl.load(address, mask=mask, other=0.0, eviction_policy="evict_first")
    sums = tl.sum(x[:, None] * weight.to(tl.float32), axis=0)
    tl.atomic_add(out_ptr + column, sums, mask=inside, sem="relaxed")


def teal_product(x: Tensor, weight: Tensor, threshold: float, tile: tuple[int, int, int]) -> Tensor:
    """Return the product of the entries of `x` above a threshold with a weight, float32.

    It stays in float32, which spares this design a launch that rounds to the model's dtype.

    Parameters
    ----------
    x : Tensor
        Of shape [1, d], contiguous.
    weight : Tensor
        Of shape [d, n], contiguous.
    threshold : float
    tile : (int, int, int)
        Rows, columns and warps.
    """
    width, columns = weight.shape
    rows, block, warps = tile
    out = torch.zeros((1, columns), dtype=torch.float32, device=x.device)
    teal_kernel[(triton.cdiv(columns, block), triton.cdiv(width, rows))](
        x, weight, out, threshold, width, columns, rows, block, num_warps=warps, **OPTIONS
    )
    return out
