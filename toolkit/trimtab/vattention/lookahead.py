"""Pages made ready before they are needed, to keep the driver's calls out of decode steps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack

from trimtab.vattention.table import PageRow, PageTable

LEAD = 8  # the next row is prepared when 1 / LEAD of the last page is left, or one token


class LookAhead:
    """The next page row of slots that will soon need it, created and mapped by a thread.

    It is mapped where the slot goes on, beyond its length, which no work touches: so kernels may
    run meanwhile, and nothing is to be waited for where it is unmapped unused.

    Nobody waits for a row that the thread has not started. If a row cannot be made, for lack of
    memory or any other reason, it is simply not prepared; whoever needs it then meets the error.

    Parameters
    ----------
    table : PageTable
    """

    def __init__(self, table: PageTable) -> None:
        self._table = table
        self._thread = ThreadPoolExecutor(1, "kv-look-ahead")
        self._rows: dict[int, Future[PageRow]] = {}

    def prepare(self, slots: Iterable[int], lengths: Sequence[int]) -> None:
        """Start to make the next row of those slots that have nearly filled their last one.

        Parameters
        ----------
        slots : iterable of int
        lengths : sequence of int
            Tokens of every slot of the cache.
        """
        table, row_bytes = self._table, self._table.geometry.row_bytes
        last = table.needed(table.geometry.max_len)
        for slot in slots:
            rows = len(table.rows[slot])
            left = rows * table.page - lengths[slot] * row_bytes
            near = left <= max(table.page // LEAD, row_bytes)
            if near and 0 < rows < last and slot not in self._rows:
                self._rows[slot] = self._thread.submit(table.map_ahead, slot, rows)

    def take(self, slot: int, index: int | None = None) -> PageRow | None:
        """Return the slot's row, if it exists or is being made.

        It is mapped as the slot's row `index`, or nowhere if it was prepared for another place.

        Raises
        ------
        PageError
            If it cannot be unmapped. It stays prepared.
        """
        prepared = self._rows.get(slot)
        row = None
        if prepared is not None and not prepared.cancel() and prepared.exception() is None:
            row = prepared.result()
            if row.ahead != index:
                self._table.unmap_ahead(slot, row)
        self._rows.pop(slot, None)
        return row

    def ready(self) -> int:
        """Return how many rows exist."""
        return sum(_succeeded(row) for row in self._rows.values())

    def settle(self) -> None:
        """Cancel what has not started, and wait for what has."""
        for row in self._rows.values():
            if not row.cancel():
                row.exception()

    def give_back(self, slots: Iterable[int] | None = None) -> int:
        """Release the rows of all slots, or of some, to the pool, and return how many there were.

        Raises
        ------
        PageError
            If one cannot be unmapped or released. Those that are still mapped stay prepared.
        """
        if slots is None:
            self.settle()
            slots = tuple(self._rows)
        released = 0
        for slot in slots:
            if (row := self.take(slot)) is not None:
                released += 1
                with ExitStack() as rest:
                    for page in row.pages:
                        rest.callback(self._table.pool.release, page)
        return released

    def close(self) -> None:
        """End the thread; all rows must have been given back."""
        self._thread.shutdown()


def _succeeded(row: Future[PageRow]) -> bool:
    return row.done() and not row.cancelled() and row.exception() is None
