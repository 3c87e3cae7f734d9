"""Pages created before they are needed, to keep the driver's slowest call out of decode steps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from trimtab.vattention.pages import Page
from trimtab.vattention.table import PageTable

LEAD = 8  # the next row is prepared when 1 / LEAD of the last page is left, or one token


class LookAhead:
    """The next page row of slots that will soon need it, created by a thread but not mapped yet.

    Nobody waits for a row that the thread has not started. If a row cannot be created, for lack of
    memory or any other reason, it is simply not prepared; whoever needs it then meets the error.

    Parameters
    ----------
    table : PageTable
    """

    def __init__(self, table: PageTable) -> None:
        self._table = table
        self._thread = ThreadPoolExecutor(1, "kv-look-ahead")
        self._rows: dict[int, Future[list[Page]]] = {}

    def prepare(self, slots: Iterable[int], lengths: Sequence[int]) -> None:
        """Start to create the next row of those slots that have nearly filled their last one.

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
                places = table.places(slot, rows)
                self._rows[slot] = self._thread.submit(table.pool.create, places)

    def take(self, slot: int) -> list[Page] | None:
        """Return the slot's pages, one per plane, if they exist or are being created."""
        row = self._rows.pop(slot, None)
        if row is None or row.cancel() or row.exception() is not None:
            return None
        return row.result()

    def ready(self) -> int:
        """Return how many rows exist."""
        return sum(_succeeded(row) for row in self._rows.values())

    def settle(self) -> None:
        """Cancel what has not started, and wait for what has."""
        for row in self._rows.values():
            if not row.cancel():
                row.exception()

    def give_back(self) -> int:
        """Settle, release all rows to the pool, and return how many there were."""
        rows = [self.take(slot) for slot in tuple(self._rows)]
        for page in (page for row in rows if row for page in row):
            self._table.pool.release(page)
        return sum(row is not None for row in rows)

    def close(self) -> None:
        """End the thread; all rows must have been given back."""
        self._thread.shutdown()


def _succeeded(row: Future[list[Page]]) -> bool:
    return row.done() and not row.cancelled() and row.exception() is None
