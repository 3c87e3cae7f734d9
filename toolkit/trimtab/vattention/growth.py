"""How slots get page rows of their own for the positions that are about to be written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import groupby

from trimtab.vattention.pages import Access
from trimtab.vattention.supply import Supply
from trimtab.vattention.table import PageRow, PageTable


def missing(
    table: PageTable, lengths: Sequence[int], wanted: Mapping[int, int]
) -> list[tuple[int, int]]:
    """Return slot and index of the rows that must exist or change before slots can grow.

    Such a row does not exist, or is read-only because it is, or was, shared with another slot.

    Parameters
    ----------
    table : PageTable
    lengths : sequence of int
        By slot, the tokens it has.
    wanted : mapping of int to int
        By slot, the tokens it is to have. The positions between the two lengths will be written.
    """
    return [
        (slot, index)
        for slot, length in wanted.items()
        if length > lengths[slot]
        for index in range(_row_of(table, lengths[slot]), table.needed(length))
        if not _writable(table.rows[slot], index)
    ]


def make_writable(
    undo: ExitStack,
    table: PageTable,
    supply: Supply,
    lengths: Sequence[int],
    wanted: Mapping[int, int],
    needs: Sequence[int],
) -> None:
    """Give slots rows of their own where they will write, with the live bytes of replaced rows.

    Parameters
    ----------
    undo : ExitStack
    table : PageTable
    supply : Supply
    lengths : sequence of int
        By slot, the live tokens.
    wanted : mapping of int to int
        The lengths to which some slots grow.
    needs : sequence of int
        By slot, how many rows it must have afterwards.

    Raises
    ------
    KVOutOfMemory, PageError
        Everything is as before once `undo` is left, except that cached rows may be gone.
    """
    for slot, index in missing(table, lengths, wanted):
        _take_over(table, lengths, slot, index)
    new, own, rows = _supplied(undo, table, supply, lengths, wanted, needs)
    for slot, group in groupby(zip(new, rows, strict=True), key=lambda pair: pair[0][0]):
        added: list[PageRow] = []
        for (_, index), row in group:
            if index < len(table.rows[slot]):
                end = lengths[slot] * table.geometry.row_bytes
                live = max(0, end - index * table.page)
                table.replace(undo, slot, index, row, live)
            else:
                added.append(row)
        if added:
            table.extend(undo, slot, added)
    for slot, index in own:
        table.allow(undo, slot, index, index + 1, Access.write)


def _supplied(
    undo: ExitStack,
    table: PageTable,
    supply: Supply,
    lengths: Sequence[int],
    wanted: Mapping[int, int],
    needs: Sequence[int],
) -> tuple[list[tuple[int, int]], list[tuple[int, int]], list[PageRow]]:
    """Return the places that need a new row, those that take theirs over, and the new rows.

    Cached rows that are reclaimed for the new ones may have been the last to share a row with a
    place, which can take it over then.
    """
    while True:
        new, own = _plan(table, missing(table, lengths, wanted))
        with ExitStack() as attempt:
            rows = supply.rows(attempt, new, needs)
            if (new, own) == _plan(table, missing(table, lengths, wanted)):
                undo.push(attempt.pop_all())
                return new, own, rows


def fork(
    undo: ExitStack,
    table: PageTable,
    supply: Supply,
    needs: Sequence[int],
    source: int,
    slot: int,
    nbytes: int,
) -> None:
    """Give a slot without rows the first bytes of another: whole pages shared, the rest copied.

    Parameters
    ----------
    undo : ExitStack
    table : PageTable
    supply : Supply
    needs : sequence of int
        By slot, how many of its rows may not be reclaimed.
    source, slot : int
    nbytes : int
        In every plane.

    Raises
    ------
    KVOutOfMemory, PageError
        Everything is as before once `undo` is left, except that cached rows may be gone.
    """
    whole, rest = divmod(nbytes, table.page)
    copies = supply.rows(undo, [(slot, whole)] if rest else [], needs)
    shared = table.rows[source][:whole]
    if shared:
        # Work in progress may still write there, and must not lose its access.
        table.settle()
        table.allow(undo, source, 0, whole, Access.read)
        table.extend(undo, slot, shared)
    if copies:
        table.extend(undo, slot, copies)
        undo.callback(table.settle)
        table.filled(slot, whole, rest).copy_(table.filled(source, whole, rest))


def _row_of(table: PageTable, token: int) -> int:
    return token * table.geometry.row_bytes // table.page


def _writable(rows: Sequence[PageRow], index: int) -> bool:
    return index < len(rows) and rows[index].access is Access.write


def _take_over(table: PageTable, lengths: Sequence[int], slot: int, index: int) -> None:
    """Leave a row to one slot alone if the other slots that have it do not need it."""
    if index >= len(table.rows[slot]):
        return
    row = table.rows[slot][index]
    # All slots that share a row have it at the same index: as the same part of one prefix.
    others = [
        other
        for other, rows in enumerate(table.rows)
        if other != slot and index < len(rows) and rows[index] is row
    ]
    if all(table.needed(lengths[other]) <= index for other in others):
        table.cut(dict.fromkeys(others, index))


def _plan(
    table: PageTable, places: Sequence[tuple[int, int]]
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return the places that need a new row, and those whose row will belong to the slot alone."""
    new, own = [], []
    leaving: Counter[PageRow] = Counter()
    for slot, index in places:
        row = table.rows[slot][index] if index < len(table.rows[slot]) else None
        if row is not None and row.slots - leaving[row] == 1:
            own.append((slot, index))
            continue
        new.append((slot, index))
        if row is not None:
            leaving[row] += 1
    return new, own
