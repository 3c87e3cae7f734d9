"""Which pages stand behind which slot; every change of that happens whole or not at all.

A change is a series of calls that may fail one by one. Each leaves its inverse on the `ExitStack`
that it is given, and whoever gave it keeps the change with `pop_all` or, by leaving, takes it back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from trimtab.vattention.layout import Geometry
from trimtab.vattention.pages import Access, Fence, Page, Reservation
from trimtab.vattention.pool import PagePool


@dataclass(eq=False)
class PageRow:
    """One page in every plane: what a slot grows by.

    Attributes
    ----------
    pages : list of Page
        By plane. The row refers to each once, its mappings aside.
    access : Access
        What every slot that it stands behind may do: only read, where there are several.
    """

    pages: list[Page]
    access: Access = Access.write

    @property
    def slots(self) -> int:
        """How many slots it stands behind."""
        return self.pages[0].mappings


class PageTable:
    """The page rows behind every slot of a cache, in one reservation.

    Parameters
    ----------
    pool : PagePool
    geometry : Geometry
    reservation : Reservation

    Attributes
    ----------
    rows : list of list of PageRow
        By slot, from its beginning, without gaps.
    all : set of PageRow
    row_bytes : int
        Of a page row.
    """

    def __init__(self, pool: PagePool, geometry: Geometry, reservation: Reservation) -> None:
        self.pool = pool
        self.geometry = geometry
        self.reservation = reservation
        self.page = pool.page_bytes
        self.row_bytes = geometry.planes * self.page
        self.rows: list[list[PageRow]] = [[] for _ in range(geometry.slots)]
        self.all: set[PageRow] = set()
        self._fences: dict[int, Fence] = {}

    def needed(self, length: int) -> int:
        """Return how many rows hold the first `length` tokens of a slot."""
        return self.geometry.page_rows(length, self.page)

    def places(self, slot: int, index: int) -> list[int]:
        """Return the addresses of a row behind a slot, by plane."""
        return [
            self.reservation.address + self._offset(plane, slot, index)
            for plane in range(self.geometry.planes)
        ]

    def add(self, undo: ExitStack, pages: list[Page]) -> PageRow:
        """Take over pages, one a plane, that were just created."""
        row = PageRow(pages)
        self.all.add(row)
        undo.callback(self._give_back, [row])
        return row

    def extend(self, undo: ExitStack, slot: int, rows: Sequence[PageRow]) -> None:
        """Put rows behind the end of a slot, for what each may be used for."""
        end = len(self.rows[slot])
        for plane in range(self.geometry.planes):
            self._map(plane, slot, end, rows)
            undo.callback(self._unmap, plane, slot, end, len(rows))
        self.rows[slot].extend(rows)
        undo.callback(self.rows[slot].__delitem__, slice(end, None))

    def replace(self, undo: ExitStack, slot: int, index: int, row: PageRow, live: int) -> None:
        """Put a row of the slot's own in the place of a shared one, whose `live` bytes it copies.

        Those stand aside one page at a time while the row changes: that is all the memory it
        takes. Live bytes are the first of the page in every plane.
        """
        old, filled = self.rows[slot][index], self.filled(slot, index, live)
        for plane, place in enumerate(filled):
            copy = place.clone()
            self.settle()
            self._unmap(plane, slot, index, 1)
            undo.callback(self._map, plane, slot, index, [old])
            self._map(plane, slot, index, [row])
            undo.callback(self._unmap, plane, slot, index, 1)
            undo.callback(self.settle)
            place.copy_(copy)
        self.rows[slot][index] = row
        undo.callback(self.rows[slot].__setitem__, index, old)

    def allow(self, undo: ExitStack, slot: int, start: int, stop: int, access: Access) -> None:
        """Say what rows may be used for; those that it changes stand behind this slot alone."""
        rows = self.rows[slot][start:stop]
        if any(row.access is not access for row in rows):
            # Before the change: it may stop anywhere, and setting it all back is always right.
            undo.callback(self._protect_all, slot, start, rows, [row.access for row in rows])
            self._protect_all(slot, start, rows, [access] * len(rows))

    def filled(self, slot: int, index: int, nbytes: int) -> Tensor:
        """Return the first bytes of a row behind a slot, uint8 of shape ``[planes, nbytes]``."""
        planes = self.geometry.planes
        stride = self._offset(1, slot, index) - self._offset(0, slot, index)
        return self.pool.tensor(
            self.reservation,
            self._offset(0, slot, index),
            (planes, nbytes),
            (stride, 1),
            torch.uint8,
        )

    def settle(self) -> None:
        """Return when the work submitted so far is done."""
        self.pool.fence().wait()

    def mark(self, slot: int) -> None:
        """Remember that work submitted so far may use the whole of a slot."""
        self._fences[slot] = self.pool.fence()

    def cut(self, keep: Mapping[int, int]) -> None:
        """Take all rows from behind slots but the first so many, when no work needs them.

        Pages that no other slot has are given back.
        """
        dropped = {slot: self.rows[slot][count:] for slot, count in keep.items()}
        dropped = {slot: rows for slot, rows in dropped.items() if rows}
        for slot in dropped:
            if slot in self._fences:
                self._fences[slot].wait()
        with ExitStack() as undo:
            for slot, rows in dropped.items():
                for plane in range(self.geometry.planes):
                    self._unmap(plane, slot, keep[slot], len(rows))
                    undo.callback(self._map, plane, slot, keep[slot], rows)
            undo.pop_all()
        for slot in dropped:
            del self.rows[slot][keep[slot] :]
        gone = dict.fromkeys(row for rows in dropped.values() for row in rows if not row.slots)
        self._give_back(gone)

    def _offset(self, plane: int, slot: int, index: int) -> int:
        return self.geometry.offset(plane, slot, self.page) + index * self.page

    def _give_back(self, rows: Iterable[PageRow]) -> None:
        with ExitStack() as rest:
            for row in rows:
                self.all.remove(row)
                for page in row.pages:
                    rest.callback(self.pool.release, page)

    def _map(self, plane: int, slot: int, index: int, rows: Sequence[PageRow]) -> None:
        pages = [row.pages[plane] for row in rows]
        self.pool.map(self.reservation, self._offset(plane, slot, index), pages)
        try:
            self._protect(plane, slot, index, rows)
        except BaseException:
            self._unmap(plane, slot, index, len(rows))
            raise

    def _unmap(self, plane: int, slot: int, index: int, count: int) -> None:
        offset = self._offset(plane, slot, index)
        self.pool.unmap(self.reservation, offset, count * self.page)

    def _protect(self, plane: int, slot: int, index: int, rows: Sequence[PageRow]) -> None:
        for access, run in groupby(rows, key=lambda row: row.access):
            nbytes = len(list(run)) * self.page
            self.pool.protect(self.reservation, self._offset(plane, slot, index), nbytes, access)
            index += nbytes // self.page

    def _protect_all(
        self, slot: int, index: int, rows: Sequence[PageRow], accesses: Sequence[Access]
    ) -> None:
        for row, access in zip(rows, accesses, strict=True):
            row.access = access
        for plane in range(self.geometry.planes):
            self._protect(plane, slot, index, rows)
