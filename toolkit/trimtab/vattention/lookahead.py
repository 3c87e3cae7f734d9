"""Pages created before they are needed: a driver's slowest call, out of a decode step's way."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from trimtab.vattention.pages import Page
from trimtab.vattention.pool import PagePool


class LookAhead:
    """The next page row of slots that are about to need it, created by one thread, not yet mapped.

    Nobody waits for what the thread has not begun, and what it cannot have, for lack of memory or
    for whatever reason, is not prepared: whoever needs it then finds out.

    Parameters
    ----------
    pool : PagePool
    """

    def __init__(self, pool: PagePool) -> None:
        self._pool = pool
        self._thread = ThreadPoolExecutor(1, "kv-look-ahead")
        self._rows: dict[int, Future[list[Page]]] = {}

    def prepare(self, slot: int, places: Sequence[int]) -> None:
        """Begin to create a row for a slot that has none, to be mapped at these addresses."""
        if slot not in self._rows:
            self._rows[slot] = self._thread.submit(self._pool.create, places)

    def take(self, slot: int) -> list[Page] | None:
        """Return the slot's pages, one a plane, if they are there or being created."""
        row = self._rows.pop(slot, None)
        if row is None or row.cancel() or row.exception() is not None:
            return None
        return row.result()

    def ready(self) -> int:
        """Return how many rows are there."""
        return sum(_succeeded(row) for row in self._rows.values())

    def settle(self) -> None:
        """Leave nothing under way."""
        for row in self._rows.values():
            if not row.cancel():
                row.exception()

    def give_back(self) -> int:
        """Give all rows back to the pool, leave nothing under way; return how many there were."""
        rows = [self.take(slot) for slot in tuple(self._rows)]
        for page in (page for row in rows if row for page in row):
            self._pool.release(page)
        return sum(row is not None for row in rows)

    def close(self) -> None:
        """End the thread. Rows that are there are to be given back before."""
        self._thread.shutdown()


def _succeeded(row: Future[list[Page]]) -> bool:
    return row.done() and not row.cancelled() and row.exception() is None
