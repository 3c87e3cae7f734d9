"""Device code in Triton: what a decode step does between its matrix products and its attention.

Numbers are float32 within a kernel and of the model's dtype between kernels. A row at a negative
position is idle: it is computed like any other, but nothing of it gets into the cache.
"""
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

from trimtab_kernels.sparse_linear.triton_kernels import added_up, not_below, selected

SQRT_HALF = tl.constexpr(0.7071067811865476)
GELU_TANH = tl.constexpr(1.5957691216057308)
"""Twice the square root of 2 / pi: tanh(x) = 2 sigmoid(2 x) - 1."""


@triton.jit
def embed_kernel(
    tokens_ptr,
    positions_ptr,
    weight_ptr,
    learned_ptr,
    out_ptr,
    scale,
    offset,
    width,
    weight_stride,
    learned_stride,
    HAS_SCALE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write one block of one row of the residual stream; no learned positions if they are None."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    token = tl.load(tokens_ptr + row)
    x = tl.load(weight_ptr + token * weight_stride + at, mask=inside).to(tl.float32)
    if HAS_SCALE:
        x = x * scale
    if learned_ptr is not None:
        place = tl.maximum(tl.load(positions_ptr + row), 0) + offset
        x += tl.load(learned_ptr + place * learned_stride + at, mask=inside).to(tl.float32)
    tl.store(out_ptr + row * width + at, x.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def standardized(x, inside, width, epsilon, CENTERS: tl.constexpr):
    """Return `x`, zero outside, over the root of its variance or mean square; and both parts."""
    mean = 0.0
    if CENTERS:
        mean = tl.sum(x, axis=0) / width
    centered = tl.where(inside, x - mean, 0.0)
    factor = tl.rsqrt(tl.sum(centered * centered, axis=0) / width + epsilon)
    return centered * factor, mean, factor


@triton.jit
def normalized(x, weight_ptr, bias_ptr, at, inside, width, epsilon, offset, CENTERS: tl.constexpr):
    """Apply a norm to one row."""
    y, _, _ = standardized(x, inside, width, epsilon, CENTERS)
    y = y * (tl.load(weight_ptr + at, mask=inside, other=0.0).to(tl.float32) + offset)
    if bias_ptr is not None:
        y += tl.load(bias_ptr + at, mask=inside, other=0.0).to(tl.float32)
    return y


@triton.jit
def norm_kernel(
    stream_ptr,
    added_ptr,
    post_weight_ptr,
    post_bias_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    post_epsilon,
    post_offset,
    epsilon,
    offset,
    width,
    positions_ptr,
    counts_ptr,
    threshold,
    keep,
    dense_prefix,
    POST_CENTERS: tl.constexpr,
    CENTERS: tl.constexpr,
    NAN_RANK: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add to one row of the residual stream, in place, and write the norm of the sum to `out`.

    What is added goes through a norm of its own first, if `post_weight_ptr` is not None. Nothing is
    added if `added_ptr` is None, and `out` is not written if `weight_ptr` is None. With positions,
    `out` is what is `selected` of the norm.
    """
    at = tl.arange(0, BLOCK)
    inside = at < width
    row = tl.program_id(0).to(tl.int64)
    place = row * width + at
    x = tl.load(stream_ptr + place, mask=inside, other=0.0).to(tl.float32)
    if added_ptr is not None:
        added = tl.load(added_ptr + place, mask=inside, other=0.0).to(tl.float32)
        if post_weight_ptr is not None:
            added = normalized(
                added, post_weight_ptr, post_bias_ptr, at, inside, width, post_epsilon,
                post_offset, POST_CENTERS,
            )  # fmt: skip
        rounded = (x + added).to(stream_ptr.dtype.element_ty)
        tl.store(stream_ptr + place, rounded, mask=inside)
        x = rounded.to(tl.float32)
    if weight_ptr is not None:
        y = normalized(x, weight_ptr, bias_ptr, at, inside, width, epsilon, offset, CENTERS)
        y = y.to(out_ptr.dtype.element_ty)
        if positions_ptr is not None:
            y = selected(
                y, inside, row, positions_ptr, counts_ptr, threshold, keep, dense_prefix,
                NAN_RANK, BITS,
            )  # fmt: skip
        tl.store(out_ptr + place, y, mask=inside)


@triton.jit
def either(first, first_ptr, second_ptr, place, at, width):
    """Load from one of two vectors; zero from the `width`-th on."""
    one = tl.load(first_ptr + place, mask=at < tl.where(first, width, 0), other=0.0)
    other = tl.load(second_ptr + place, mask=at < tl.where(first, 0, width), other=0.0)
    return one.to(tl.float32) + other.to(tl.float32)


@triton.jit
def place_kernel(
    made_ptr,
    bias_ptr,
    query_ptr,
    keys_ptr,
    values_ptr,
    slots_ptr,
    positions_ptr,
    query_weight_ptr,
    query_bias_ptr,
    key_weight_ptr,
    key_bias_ptr,
    cos_ptr,
    sin_ptr,
    epsilon,
    offset,
    heads,
    kv_heads,
    width,
    rotated,
    key_slot,
    key_token,
    key_head,
    value_slot,
    value_token,
    value_head,
    parts,
    CENTERS: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Normalize and rotate one head of one row; keys and values go to the cache.

    The heads of a row are its queries, keys and values, one after another, as a product that may be
    in parts. There is no norm if its weights are None, and no rotation if the tables are.
    """
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1).to(tl.int64)
    is_query = head < heads
    is_value = head >= heads + kv_heads
    position = tl.load(positions_ptr + row)
    at = tl.arange(0, BLOCK)
    inside = at < width
    rows, columns = tl.num_programs(0), tl.num_programs(1) * width
    first = head * width
    raw = added_up(made_ptr, bias_ptr, row, rows, first + at, inside, columns, parts, BLOCK_PARTS)
    raw = raw.to(query_ptr.dtype.element_ty).to(tl.float32)
    x = raw
    mean = 0.0
    factor = 1.0
    if query_weight_ptr is not None:
        x, mean, factor = standardized(raw, inside, width, epsilon, CENTERS)
        x = x * (either(is_query, query_weight_ptr, key_weight_ptr, at, at, width) + offset)
        if query_bias_ptr is not None:
            x += either(is_query, query_bias_ptr, key_bias_ptr, at, at, width)
    if cos_ptr is not None:
        # Loaded once more, as what other threads of this program hold.
        half = rotated // 2
        turns = at < rotated
        partner = tl.where(at < half, at + half, at - half)
        other = added_up(
            made_ptr, bias_ptr, row, rows, first + partner, turns, columns, parts, BLOCK_PARTS
        )
        other = other.to(query_ptr.dtype.element_ty).to(tl.float32)
        if query_weight_ptr is not None:
            weight = either(is_query, query_weight_ptr, key_weight_ptr, partner, at, rotated)
            other = (other - mean) * factor * (weight + offset)
            if query_bias_ptr is not None:
                other += either(is_query, query_bias_ptr, key_bias_ptr, partner, at, rotated)
        table = tl.maximum(position, 0) * rotated + at
        cos = tl.load(cos_ptr + table, mask=turns, other=1.0).to(tl.float32)
        sin = tl.load(sin_ptr + table, mask=turns, other=0.0).to(tl.float32)
        x = x * cos + tl.where(at < half, -other, other) * sin
    made_of = tl.where(is_value, raw, x).to(query_ptr.dtype.element_ty)
    if is_query:
        tl.store(query_ptr + (row * heads + head) * width + at, made_of, mask=inside)
        return
    if position < 0:
        return
    slot = tl.load(slots_ptr + row)
    if is_value:
        value = values_ptr + slot * value_slot + position * value_token
        value += (head - heads - kv_heads) * value_head
        tl.store(value + at, made_of, mask=inside)
        return
    key = keys_ptr + slot * key_slot + position * key_token + (head - heads) * key_head
    tl.store(key + at, made_of, mask=inside)


@triton.jit
def activate_kernel(
    made_ptr,
    bias_ptr,
    out_ptr,
    positions_ptr,
    counts_ptr,
    threshold,
    dense_prefix,
    width,
    parts,
    KIND: tl.constexpr,
    GATED: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write one block of one row in the middle of an MLP: activation(gate) * up.

    Those are a product that may be in parts. With positions, what is below the threshold is
    dropped.
    """
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    rows = tl.num_programs(0)
    columns = width * 2 if GATED else width
    x = added_up(made_ptr, bias_ptr, row, rows, at, inside, columns, parts, BLOCK_PARTS)
    x = x.to(out_ptr.dtype.element_ty).to(tl.float32)
    if KIND == "silu":
        y = x * tl.sigmoid(x)
    elif KIND == "relu":
        y = tl.where(x < 0, 0.0, x)  # NaN stays
    elif KIND == "gelu":
        y = 0.5 * x * (1 + tl.erf(x * SQRT_HALF))
    else:
        tl.static_assert(KIND == "gelu_tanh")
        y = x * tl.sigmoid((x + 0.044715 * x * x * x) * GELU_TANH)
    if GATED:
        up = added_up(
            made_ptr, bias_ptr, row, rows, width + at, inside, columns, parts, BLOCK_PARTS
        )
        y *= up.to(out_ptr.dtype.element_ty).to(tl.float32)
    y = y.to(out_ptr.dtype.element_ty)
    if positions_ptr is not None:
        position = tl.load(positions_ptr + row)
        y = not_below(y, inside, position, threshold, dense_prefix, counts_ptr)
    tl.store(out_ptr + row * width + at, y, mask=inside)
