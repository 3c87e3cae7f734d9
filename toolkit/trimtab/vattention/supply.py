"""Page rows for slots that grow: prepared rows, new ones, and room made by giving up cached ones.

A row is cached if its slot has no live token in it: any row of a released slot, and the rows beyond
a slot's length. Cached rows save their slot the work of growing again. Every other need for pages
takes precedence.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from trimtab.vattention.lookahead import LookAhead
from trimtab.vattention.pages import KVOutOfMemory
from trimtab.vattention.table import PageRow, PageTable


class Supply:
    """Where the rows of one page table come from.

    Parameters
    ----------
    table : PageTable
    ahead : LookAhead
    """

    def __init__(self, table: PageTable, ahead: LookAhead) -> None:
        self._table = table
        self._ahead = ahead

    def rows(
        self, undo: ExitStack, wanted: Sequence[tuple[int, int]], needs: Sequence[int]
    ) -> list[PageRow]:
        """Return new rows, reclaiming cached ones if memory is short.

        Parameters
        ----------
        undo : ExitStack
            Gives the rows back.
        wanted : sequence of (int, int)
            Slot and index of each row.
        needs : sequence of int
            By slot, how many of its rows may not be reclaimed.

        Raises
        ------
        KVOutOfMemory
            If there is no memory for all of them. Nothing was reclaimed if the budget shows that.
        """
        size, pool = self._table.row_bytes, self._table.pool
        needed = len(wanted) * size
        if pool.free_bytes is not None and needed > pool.free_bytes:
            self._ahead.settle()
            reclaimable = self.reclaimable(needs)
            if needed > pool.free_bytes + reclaimable:
                raise KVOutOfMemory(needed, pool.free_bytes, reclaimable)
        rows: list[PageRow] = []
        try:
            for slot, index in wanted:
                rows.append(self._row(undo, slot, index, needs))
        except KVOutOfMemory as error:
            raise KVOutOfMemory(needed, error.free + len(rows) * size) from error
        return rows

    def reclaimable(self, needs: Sequence[int]) -> int:
        """Return the bytes of the rows that are prepared, or that no slot needs."""
        held = zip(self._table.rows, needs, strict=True)
        needed = {row for rows, count in held for row in rows[:count]}
        spare = len(self._table.all) - len(needed) + self._ahead.ready()
        return spare * self._table.row_bytes

    def _row(self, undo: ExitStack, slot: int, index: int, needs: Sequence[int]) -> PageRow:
        row = self._ahead.take(slot, index)
        while row is None:
            try:
                row = PageRow(self._table.pool.create(self._table.places(slot, index)))
            except KVOutOfMemory:
                if not self._reclaim(needs):
                    raise
        self._table.add(undo, slot, row)
        return row

    def _reclaim(self, needs: Sequence[int]) -> bool:
        """Give up some cached pages, the least likely to be needed again first."""
        if self._ahead.give_back():
            return True
        rows = self._table.rows
        cached = [slot for slot, count in enumerate(needs) if len(rows[slot]) > count]
        if not cached:
            return False
        # Slots with nothing live come before the tails of others; among them, those that `acquire`
        # would take last.
        slot = min(cached, key=lambda slot: (needs[slot] > 0, len(rows[slot])))
        self._table.cut({slot: len(rows[slot]) - 1})
        return True
