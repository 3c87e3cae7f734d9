"""Which pages back which slot; every change to that happens completely or not at all.

A change is a series of calls, any of which may fail. Each registers its inverse on the `ExitStack`
that it is given. The owner of the stack keeps the change with `pop_all`, or undoes it by leaving.
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
    """One page in every plane: the unit by which a slot grows.

    Attributes
    ----------
    pages : list of Page
        By plane. The row holds one reference to each, besides those of the mappings.
    access : Access
        What the slots that have the row may do: only read, if there are several.
    ahead : int or None
        Where in its slot it is mapped already, before the slot has it; None once it has.
    """

    pages: list[Page]
    access: Access = Access.write
    ahead: int | None = None

    @property
    def slots(self) -> int:
        """How many slots have the row."""
        return self.pages[0].mappings


class PageTable:
    """The page rows of every slot of a cache, in one reservation.

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
    page : int
        Bytes of a page.
    row_bytes : int
        Bytes of a page row.
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
        """Return the addresses of a slot's row `index`, by plane."""
        return [
            self.reservation.address + self._offset(plane, slot, index)
            for plane in range(self.geometry.planes)
        ]

    def add(self, undo: ExitStack, slot: int, row: PageRow) -> None:
        """Take in a new row that a slot is going to have."""
        self.all.add(row)
        undo.callback(self._give_back, [row])
        if row.ahead is not None:
            undo.callback(self.unmap_ahead, slot, row)

    def extend(self, undo: ExitStack, slot: int, rows: Sequence[PageRow]) -> None:
        """Map rows at the end of a slot, each with its own access.

        The first of them may be mapped there already.
        """
        end = len(self.rows[slot])
        mapped = int(rows[0].ahead is not None)
        if mapped:
            rows[0].ahead = None
            undo.callback(setattr, rows[0], "ahead", end)
        if len(rows) > mapped:
            self._map_all(undo, slot, end + mapped, rows[mapped:])
        self.rows[slot].extend(rows)
        undo.callback(self.rows[slot].__delitem__, slice(end, None))

    def map_ahead(self, slot: int, index: int) -> PageRow:
        """Return a new row, mapped for writing where a slot may have it next.

        The table does not know it yet. Any thread may call.
        """
        row = PageRow(self.pool.create(self.places(slot, index)), ahead=index)
        with ExitStack() as undo:
            for page in row.pages:
                undo.callback(self.pool.release, page)
            self._map_all(undo, slot, index, [row])
            undo.pop_all()
        return row

    def unmap_ahead(self, slot: int, row: PageRow) -> None:
        """Unmap a row that was mapped ahead for a slot, and that no work has used."""
        index = row.ahead
        assert index is not None
        with ExitStack() as undo:
            for plane in range(self.geometry.planes):
                self._unmap(plane, slot, index, 1)
                undo.callback(self._map, plane, slot, index, [row])
            undo.pop_all()
        row.ahead = None

    def replace(self, undo: ExitStack, slot: int, index: int, row: PageRow, live: int) -> None:
        """Replace a slot's shared row by one of its own, with a copy of the live bytes.

        The bytes are copied by way of a temporary tensor, one page at a time: that is all the extra
        memory needed.

        Parameters
        ----------
        undo : ExitStack
        slot, index : int
        row : PageRow
            The new row, mapped nowhere.
        live : int
            Live bytes in every plane, from the beginning of the page.
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
        """Set the access of rows [start, stop) of a slot; rows that change belong to it alone."""
        rows = self.rows[slot][start:stop]
        if any(row.access is not access for row in rows):
            # Registered first: the change may fail half-way, and undoing all of it is always right.
            undo.callback(self._protect_all, slot, start, rows, [row.access for row in rows])
            self._protect_all(slot, start, rows, [access] * len(rows))

    def filled(self, slot: int, index: int, nbytes: int) -> Tensor:
        """Return the first bytes of a slot's row, uint8 of shape ``[planes, nbytes]``."""
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
        """Wait until the work submitted so far is done."""
        self.pool.fence().wait()

    def mark(self, slot: int) -> None:
        """Remember that work submitted so far may use the whole of a slot."""
        self._fences[slot] = self.pool.fence()

    def cut(self, keep: Mapping[int, int]) -> None:
        """Take rows from slots, once no work uses them; free the pages that no other slot has.

        Parameters
        ----------
        keep : mapping of int to int
            By slot, how many of its first rows stay.
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

    def _map_all(self, undo: ExitStack, slot: int, index: int, rows: Sequence[PageRow]) -> None:
        for plane in range(self.geometry.planes):
            self._map(plane, slot, index, rows)
            undo.callback(self._unmap, plane, slot, index, len(rows))

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
