"""Device code in Triton: selection, and split-K products with few tokens.

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
def dot_kernel(
    x_ptr,
    weight_ptr,
    partial_ptr,
    tokens,
    width,
    columns,
    stride,
    ROWS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
):
    """Do for several tokens what `gather_kernel` does for one, all rows of the weight read."""
    column = tl.program_id(0) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    part = tl.program_id(1)
    token = tl.arange(0, BLOCK_TOKENS)
    present = (token < tokens)[:, None]
    inside = (column < columns)[None, :]
    sums = tl.zeros((BLOCK_TOKENS, BLOCK_COLUMNS), tl.float32)
    for start in range(0, ROWS, BLOCK_ROWS):
        row = part * ROWS + start + tl.arange(0, BLOCK_ROWS)
        x_address = x_ptr + token[:, None] * width + row[None, :]
        x = tl.load(x_address, mask=present & (row < width)[None, :], other=0.0)
        address = weight_ptr + row.to(tl.int64)[:, None] * stride + column[None, :]
        weight = tl.load(address, mask=(row < width)[:, None] & inside, other=0.0)
        # Exact, by float32: the interpreter knows no other way from int8 to bfloat16.
        weight = weight.to(tl.float32).to(x.dtype)
        sums = tl.dot(x, weight, sums, input_precision="ieee")
    target = partial_ptr + (part * tokens + token[:, None]) * columns + column[None, :]
    tl.store(target, sums, mask=present & inside)


@triton.jit
def added_up(
    partial_ptr, bias_ptr, row, rows, column, inside, columns, parts, BLOCK_PARTS: tl.constexpr
):
    """Return entries of one row of a product: the sum of its parts, and the bias if there is one.

    The parts are of shape [parts, rows, columns]. Up to `BLOCK_PARTS` are loaded at once.
    """
    total = tl.zeros(column.shape, tl.float32)
    for start in range(0, parts, BLOCK_PARTS):
        part = start + tl.arange(0, BLOCK_PARTS)
        address = partial_ptr + (part * rows + row)[:, None] * columns + column[None, :]
        tile = tl.load(address, mask=(part < parts)[:, None] & inside[None, :], other=0.0)
        total += tl.sum(tile.to(tl.float32), axis=0)
    if bias_ptr is not None:
        total += tl.load(bias_ptr + column, mask=inside, other=0.0).to(tl.float32)
    return total


@triton.jit
def sum_kernel(
    partial_ptr,
    bias_ptr,
    scale_ptr,
    out_ptr,
    positions_ptr,
    counts_ptr,
    columns,
    parts,
    threshold,
    dense_prefix,
    BLOCK_PARTS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """Add the parts of a product, scale the sum, and add the bias, where there are any.

    With positions, what is below the threshold is dropped.
    """
    row = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    inside = column < columns
    y = added_up(
        partial_ptr, None, row, tl.num_programs(1), column, inside, columns, parts, BLOCK_PARTS
    )
    if scale_ptr is not None:
        y *= tl.load(scale_ptr + column, mask=inside, other=0.0)
    if bias_ptr is not None:
        y += tl.load(bias_ptr + column, mask=inside, other=0.0).to(tl.float32)
    y = y.to(out_ptr.dtype.element_ty)
    if positions_ptr is not None:
        position = tl.load(positions_ptr + row)
        y = not_below(y, inside, position, threshold, dense_prefix, counts_ptr)
    tl.store(out_ptr + row * columns + column, y, mask=inside)


@triton.jit
def largest(x, inside, threshold, keep, NAN_RANK: tl.constexpr, BITS: tl.constexpr):
    """Return which entries of one row are kept: up to `keep`, none below the threshold.

    Those are the largest, and among equal ones the first. `NAN_RANK` is the key of every NaN, one
    above that of infinity; a magnitude has `BITS`.
    """
    # Without the sign, the bits of a float, as integers, are ordered by magnitude.
    if BITS == 31:
        bits = x.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    else:
        bits = (x.to(tl.int16, bitcast=True) & 0x7FFF).to(tl.int32)
    passes = inside & ~(tl.abs(x.to(tl.float32)) < threshold)
    kept = passes
    if tl.sum(passes.to(tl.int32), axis=0) > keep:
        key = tl.where(passes, tl.minimum(bits, NAN_RANK), -1)
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
    return kept


@triton.jit
def count_kept(counts_ptr, x, inside, position):
    """Add how many entries are not zero, and how many there are; those of idle rows are not."""
    if position >= 0:
        # Integers: the order of the programs changes nothing.
        tl.atomic_add(counts_ptr, tl.sum((inside & (x != 0)).to(tl.int64), axis=0))
        tl.atomic_add(counts_ptr + 1, tl.sum(inside.to(tl.int64), axis=0))


@triton.jit
def not_below(x, inside, position, threshold, dense_prefix, counts_ptr):
    """Return part of a row without what is below the threshold, all of it in the dense prefix."""
    # Negated so that NaN is kept.
    kept = ~(tl.abs(x.to(tl.float32)) < threshold) | (position < dense_prefix)
    x = tl.where(kept, x, 0.0)
    if counts_ptr is not None:
        count_kept(counts_ptr, x, inside, position)
    return x


@triton.jit
def selected(
    x,
    inside,
    row,
    positions_ptr,
    counts_ptr,
    threshold,
    keep,
    dense_prefix,
    NAN_RANK: tl.constexpr,
    BITS: tl.constexpr,
):
    """Return one row with its `largest` entries; all of it at a position in the dense prefix.

    There are no positions if `positions_ptr` is None, and nothing is counted if `counts_ptr` is.
    """
    kept = largest(x, inside, threshold, keep, NAN_RANK, BITS)
    if positions_ptr is None:
        x = tl.where(kept, x, 0.0)
    else:
        position = tl.load(positions_ptr + row)
        x = tl.where(kept | (position < dense_prefix), x, 0.0)
        if counts_ptr is not None:
            count_kept(counts_ptr, x, inside, position)
    return x


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
    """Write what is `selected` of one row."""
    at = tl.arange(0, BLOCK)
    inside = at < width
    row = tl.program_id(0).to(tl.int64)
    offset = row * width + at
    x = tl.load(x_ptr + offset, mask=inside, other=0.0)
    x = selected(
        x, inside, row, positions_ptr, counts_ptr, threshold, keep, dense_prefix, NAN_RANK, BITS
    )
    tl.store(out_ptr + offset, x, mask=inside)
