"""Device code in Triton: selection, and the split-K gather-GEMV.

There are no atomics: partial sums go to a buffer and are added in a fixed order, so that results
repeat bit for bit.
"""
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl


@triton.jit
def gather_kernel(
    x_ptr,
    weight_ptr,
    partial_ptr,
    threshold,
    width,
    columns,
    stride,
    ROWS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """Write one block of columns of one partial sum, over `ROWS` rows of the weight."""
    column = tl.program_id(0) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    part = tl.program_id(1)
    inside = column < columns
    sums = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
    for start in range(0, ROWS, BLOCK_ROWS):
        row = part * ROWS + start + tl.arange(0, BLOCK_ROWS)
        x = tl.load(x_ptr + row, mask=row < width, other=0.0).to(tl.float32)
        # Negated so that NaN is kept. Masked lanes read nothing from memory.
        kept = (x != 0) & ~(tl.abs(x) < threshold)
        address = weight_ptr + row.to(tl.int64)[:, None] * stride + column[None, :]
        weight = tl.load(address, mask=kept[:, None] & inside[None, :], other=0.0)
        sums += tl.where(kept, x, 0.0)[:, None] * weight.to(tl.float32)
    tl.store(partial_ptr + part * columns + column, tl.sum(sums, axis=0), mask=inside)


@triton.jit
def sum_kernel(
    partial_ptr,
    bias_ptr,
    scale_ptr,
    out_ptr,
    columns,
    PARTS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    SUM_COLUMNS: tl.constexpr,
):
    """Add the partial sums, first to last, scale them, and add the bias."""
    column = tl.program_id(0) * SUM_COLUMNS + tl.arange(0, SUM_COLUMNS)
    inside = column < columns
    total = tl.zeros((SUM_COLUMNS,), tl.float32)
    for part in range(PARTS):
        total += tl.load(partial_ptr + part * columns + column, mask=inside, other=0.0)
    if HAS_SCALE:
        total *= tl.load(scale_ptr + column, mask=inside, other=0.0)
    if HAS_BIAS:
        total += tl.load(bias_ptr + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + column, total.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def select_kernel(
    x_ptr,
    out_ptr,
    positions_ptr,
    counts_ptr,
    threshold,
    keep,
    width,
    dense_prefix,
    NAN_RANK: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Keep up to `keep` entries of one row: the largest, and among equal ones the first.

    `NAN_RANK` is the key of every NaN, one above that of infinity; a magnitude has `BITS`. Rows at
    positions below `dense_prefix` keep all; there are none if `positions_ptr` is None.
    """
    at = tl.arange(0, BLOCK)
    inside = at < width
    row = tl.program_id(0).to(tl.int64)
    offset = row * width + at
    x = tl.load(x_ptr + offset, mask=inside, other=0.0)
    # Without the sign, the bits of a float, as integers, are ordered by magnitude.
    if BITS == 31:
        bits = x.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    else:
        bits = (x.to(tl.int16, bitcast=True) & 0x7FFF).to(tl.int32)
    key = tl.minimum(bits, NAN_RANK)
    passes = inside & ~(tl.abs(x.to(tl.float32)) < threshold)
    key = tl.where(passes, key, -1)
    # The largest bound that at least `keep` keys reach, bit by bit.
    bound = 0
    for bit in tl.static_range(BITS - 1, -1, -1):
        candidate = bound | (1 << bit)
        reached = tl.sum((key >= candidate).to(tl.int32), axis=0)
        bound = tl.where(reached >= keep, candidate, bound)
    above = key > bound
    level = key == bound
    room = keep - tl.sum(above.to(tl.int32), axis=0)
    kept = above | (level & (tl.cumsum(level.to(tl.int32), axis=0) <= room))
    if positions_ptr is not None:
        position = tl.load(positions_ptr + row)
        kept = kept | (position < dense_prefix)
        if counts_ptr is not None:  # noqa: SIM102 (known when it is compiled, unlike the other)
            if position >= 0:
                # Integers: the order of the programs changes nothing.
                left = tl.sum((inside & kept & (x != 0)).to(tl.int64), axis=0)
                tl.atomic_add(counts_ptr, left)
                tl.atomic_add(counts_ptr + 1, tl.sum(inside.to(tl.int64), axis=0))
    tl.store(out_ptr + offset, tl.where(kept, x, 0.0), mask=inside)
