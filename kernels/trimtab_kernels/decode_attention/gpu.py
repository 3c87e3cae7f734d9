"""Launches of the Triton kernels. Imported only to run on a GPU, as importing Triton is slow."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from trimtab_kernels.decode_attention import triton_kernels
from trimtab_kernels.sparse_linear.gpu import NOTHING, Below

# Tokens of a slot that one program attends to; a multiple of it in slots that would otherwise have
# more than MAX_PARTS parts. It does not depend on the number of slots, which would change results.
PART = 256
MAX_PARTS = 32
# The least that tl.dot takes. The query heads of a KV head are padded to it.
MIN_DOT = 16
# Size of a block of keys, and of one of values, in the shared memory of a multiprocessor.
BLOCK_BYTES = 16 * 1024
MAX_BLOCK_TOKENS = 128
# Triton 3.9 warns unless this is set, since 3.10 changes its default.
OPTIONS = {"enable_fp_fusion": True}
ATTEND_OPTIONS = {"num_warps": 4, "num_stages": 2, **OPTIONS}
ENDLESS = 2**31 - 1


def decode_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
    out: Tensor,
    slots: Tensor | None = None,
    below: Below = NOTHING,
) -> None:
    """Write the result to `out`, without what `below` says; see `ops.decode_attention`.

    With `slots`, int64 of shape [rows], there may be any number of queries, outputs and lengths,
    each of one row and of the slot that it says.
    """
    rows, heads, width = query.shape
    kv_heads = keys.shape[2]
    window = min(window or ENDLESS, ENDLESS)
    parts = max(1, min(MAX_PARTS, triton.cdiv(min(keys.shape[1], window), PART)))
    sums = torch.empty((rows, heads, parts, width), dtype=torch.float32, device=query.device)
    largest, total = torch.empty((2, rows, heads, parts), dtype=torch.float32, device=query.device)
    blocks = block_sizes(heads // kv_heads, width, query.dtype)
    triton_kernels.attend_kernel[(rows, kv_heads, parts)](
        query.contiguous(), keys, values, lengths, slots, sums, largest, total, scale,
        softcap or 0.0, window, heads // kv_heads, width, lengths.stride(0), *keys.stride()[:3],
        *values.stride()[:3], softcap is not None, MAX_PARTS, PART, *blocks, **ATTEND_OPTIONS,
    )  # fmt: skip
    triton_kernels.combine_kernel[(rows, heads)](
        sums, largest, total, lengths, out, below.positions, below.counts, window, width, parts,
        lengths.stride(0), below.threshold, below.dense_prefix, MAX_PARTS, PART, blocks[2],
        **OPTIONS,
    )  # fmt: skip


def append_kv(keys: Tensor, values: Tensor, key: Tensor, value: Tensor, lengths: Tensor) -> None:
    """See `ops.append_kv`."""
    slots, _, kv_heads, width = keys.shape
    triton_kernels.append_kernel[(slots, kv_heads)](
        keys, values, key.contiguous(), value.contiguous(), lengths, width, lengths.stride(0),
        *keys.stride()[:3], *values.stride()[:3], triton.next_power_of_2(width), **OPTIONS,
    )  # fmt: skip


def block_sizes(group: int, width: int, dtype: torch.dtype) -> tuple[int, int, int]:
    """Return how many query heads, tokens and columns `attend_kernel` processes at a time."""
    columns = max(MIN_DOT, triton.next_power_of_2(width))
    tokens = BLOCK_BYTES // (columns * dtype.itemsize)
    heads = max(MIN_DOT, triton.next_power_of_2(group))
    return heads, max(MIN_DOT, min(MAX_BLOCK_TOKENS, tokens)), columns
