"""Device code in Triton: split-K flash-decoding with grouped query heads, and the append.

There are no atomics: the parts of a slot go to a buffer and are combined in a fixed order, so that
results repeat bit for bit. Lengths are read here, not on the host, so that a captured CUDA graph
follows them. Masked lanes read nothing from memory.
"""
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

from trimtab_kernels.sparse_linear.triton_kernels import not_below

LOWEST = tl.constexpr(-3.4028234663852886e38)
"""The largest score of no tokens. Not minus infinity, whose difference from itself is NaN."""


@triton.jit
def tokens_per_part(span, MAX_PARTS: tl.constexpr, PART: tl.constexpr):
    """Return how many of `span` tokens one program attends to; it depends on `span` alone."""
    return tl.maximum(PART, tl.cdiv(tl.cdiv(span, MAX_PARTS), PART) * PART)


@triton.jit
def attend_kernel(
    query_ptr,
    keys_ptr,
    values_ptr,
    lengths_ptr,
    slots_ptr,
    sums_ptr,
    largest_ptr,
    total_ptr,
    scale,
    softcap,
    window,
    group,
    width,
    lengths_stride,
    key_slot,
    key_token,
    key_head,
    value_slot,
    value_token,
    value_head,
    HAS_SOFTCAP: tl.constexpr,
    MAX_PARTS: tl.constexpr,
    PART: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):
    """Attend to one part of one slot, with the `group` query heads of one KV head.

    `slots_ptr` says which slot a query belongs to; each to its own if it is None.
    """
    query_row = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    part = tl.program_id(2)
    length = tl.load(lengths_ptr + query_row * lengths_stride)
    span = tl.minimum(length, window)
    count = tokens_per_part(span, MAX_PARTS, PART)
    if part * count >= span:
        return
    first = length - span + part * count
    last = tl.minimum(first + count, length)
    head = tl.arange(0, BLOCK_HEADS)
    column = tl.arange(0, BLOCK_WIDTH)
    in_group = head < group
    in_width = column < width
    slot = query_row
    if slots_ptr is not None:
        slot = tl.load(slots_ptr + query_row)
    row = (query_row * tl.num_programs(1) + kv_head) * group + head
    query = tl.load(
        query_ptr + row[:, None] * width + column[None, :],
        mask=in_group[:, None] & in_width[None, :],
        other=0.0,
    )
    keys = keys_ptr + slot * key_slot + kv_head.to(tl.int64) * key_head
    values = values_ptr + slot * value_slot + kv_head.to(tl.int64) * value_head
    largest = tl.full((BLOCK_HEADS,), LOWEST, tl.float32)
    total = tl.zeros((BLOCK_HEADS,), tl.float32)
    sums = tl.zeros((BLOCK_HEADS, BLOCK_WIDTH), tl.float32)
    for start in range(first, last, BLOCK_TOKENS):
        token = start + tl.arange(0, BLOCK_TOKENS)
        inside = token < last
        offset = token.to(tl.int64)
        key = tl.load(
            keys + offset[None, :] * key_token + column[:, None],
            mask=inside[None, :] & in_width[:, None],
            other=0.0,
        )
        score = tl.dot(query, key, input_precision="ieee") * scale
        if HAS_SOFTCAP:  # tanh(x) = 2 sigmoid(2 x) - 1
            score = softcap * (2 * tl.sigmoid(2 * score / softcap) - 1)
        score = tl.where(inside[None, :], score, float("-inf"))
        larger = tl.maximum(largest, tl.max(score, axis=1))
        factor = tl.exp(largest - larger)
        weight = tl.exp(score - larger[:, None])
        value = tl.load(
            values + offset[:, None] * value_token + column[None, :],
            mask=inside[:, None] & in_width[None, :],
            other=0.0,
        )
        sums = sums * factor[:, None]
        sums += tl.dot(weight.to(value.dtype), value, input_precision="ieee")
        total = total * factor + tl.sum(weight, axis=1)
        largest = larger
    target = row * tl.num_programs(2) + part
    tl.store(largest_ptr + target, largest, mask=in_group)
    tl.store(total_ptr + target, total, mask=in_group)
    tl.store(
        sums_ptr + target[:, None] * width + column[None, :],
        sums,
        mask=in_group[:, None] & in_width[None, :],
    )


@triton.jit
def combine_kernel(
    sums_ptr,
    largest_ptr,
    total_ptr,
    lengths_ptr,
    out_ptr,
    positions_ptr,
    counts_ptr,
    window,
    width,
    parts,
    lengths_stride,
    threshold,
    dense_prefix,
    MAX_PARTS: tl.constexpr,
    PART: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):
    """Combine the parts of one query head; with positions, drop what is below the threshold."""
    slot = tl.program_id(0).to(tl.int64)
    span = tl.minimum(tl.load(lengths_ptr + slot * lengths_stride), window)
    count = tokens_per_part(span, MAX_PARTS, PART)
    row = slot * tl.num_programs(1) + tl.program_id(1)
    part = tl.arange(0, MAX_PARTS)
    column = tl.arange(0, BLOCK_WIDTH)
    written = part * count < span
    inside = column < width
    largest = tl.load(largest_ptr + row * parts + part, mask=written, other=LOWEST)
    factor = tl.exp(largest - tl.max(largest, axis=0))
    total = tl.load(total_ptr + row * parts + part, mask=written, other=0.0)
    sums = tl.load(
        sums_ptr + (row * parts + part)[:, None] * width + column[None, :],
        mask=written[:, None] & inside[None, :],
        other=0.0,
    )
    whole = tl.where(span > 0, tl.sum(factor * total, axis=0), 1.0)
    mixed = tl.sum(factor[:, None] * sums, axis=0) / whole
    mixed = mixed.to(out_ptr.dtype.element_ty)
    if positions_ptr is not None:
        position = tl.load(positions_ptr + slot)
        mixed = not_below(mixed, inside, position, threshold, dense_prefix, counts_ptr)
    tl.store(out_ptr + row * width + column, mixed, mask=inside)


@triton.jit
def append_kernel(
    keys_ptr,
    values_ptr,
    key_ptr,
    value_ptr,
    lengths_ptr,
    width,
    lengths_stride,
    key_slot,
    key_token,
    key_head,
    value_slot,
    value_token,
    value_head,
    BLOCK_WIDTH: tl.constexpr,
):
    """Write the new key and value of one KV head of one slot."""
    slot = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1).to(tl.int64)
    token = tl.load(lengths_ptr + slot * lengths_stride).to(tl.int64) - 1
    if token < 0:
        return
    column = tl.arange(0, BLOCK_WIDTH)
    inside = column < width
    source = (slot * tl.num_programs(1) + kv_head) * width + column
    key = tl.load(key_ptr + source, mask=inside)
    value = tl.load(value_ptr + source, mask=inside)
    keys = keys_ptr + slot * key_slot + token * key_token + kv_head * key_head
    values = values_ptr + slot * value_slot + token * value_token + kv_head * value_head
    tl.store(keys + column, key, mask=inside)
    tl.store(values + column, value, mask=inside)
