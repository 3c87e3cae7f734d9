"""Consecutive slots with sequences of equal length, as transformers' caches have them."""

from __future__ import annotations

import threading

from trimtab.errors import TrimtabError
from trimtab.vattention.virtual_kv import VirtualKV


class SlotRange:
    """Consecutive slots of a `VirtualKV` that hold sequences of equal length.

    Growing or shortening to the present length does nothing, so the first layer of a step does it
    for all of them.

    Parameters
    ----------
    kv : VirtualKV
    first : int
        The first slot.
    capacity : int
        How many slots there are.
    owner : str
        Name of the config's class, for error messages.
    borrowed : bool
        Whether the slots belong to someone else, who may share their pages with other slots.

    Attributes
    ----------
    rows : int
        How many sequences there are, in the first of the slots.
    """

    def __init__(
        self, kv: VirtualKV, first: int, capacity: int, owner: str, *, borrowed: bool
    ) -> None:
        self.kv = kv
        self.first = first
        self.capacity = capacity
        self.owner = owner
        self.borrowed = borrowed
        self.rows = capacity
        self._writer: threading.Thread | None = None
        self._lock = threading.Lock()

    @property
    def length(self) -> int:
        """Tokens of each sequence."""
        return self.kv.length(self.first)

    def claim(self) -> None:
        """Keep other threads from writing until the sequences are empty again, or this one ends.

        Raises
        ------
        TrimtabError
            If another thread does.
        """
        current = threading.current_thread()
        with self._lock:
            other = self._writer
            if other is not None and other is not current and other.is_alive():
                raise TrimtabError(
                    f"the cache holds tokens of thread {other.name!r}, and thread "
                    f"{current.name!r} writes to it: give each a cache of its own, or reset() it"
                )
            self._writer = current

    def begin(self, rows: int) -> None:
        """Set the number of sequences, if those so far have no tokens."""
        if not self.length:
            self.rows = self._allowed(rows)

    def grow(self, length: int) -> None:
        """Grow every sequence to a length.

        Raises
        ------
        ValueError
            If it is above `max_len`.
        KVOutOfMemory
            If there are no pages for all of them. They are as before.
        """
        if length <= self.length:
            return
        if length > (max_len := self.kv.geometry.max_len):
            raise ValueError(
                f"a length of {length} tokens is needed, in a cache with max_len={max_len}; make "
                f"it with max_len={length} or more, which takes addresses but no memory"
            )
        self.kv.ensure(dict.fromkeys(self._slots(self.rows), length))

    def shorten(self, length: int) -> None:
        """Cut every sequence to a length."""
        if length < self.length:
            for slot in self._slots(self.rows):
                self.kv.truncate(slot, length)
        if not length:
            self._writer = None

    def widen(self, rows: int) -> None:
        """Make room for more sequences of the same length; their contents are undefined."""
        if rows > self.rows:
            self.kv.ensure(dict.fromkeys(self._slots(self._allowed(rows)), self.length))
            self.rows = rows

    def narrow(self, rows: int) -> None:
        """Keep only the first sequences."""
        for slot in self._slots(self.rows)[rows:]:
            self.kv.truncate(slot, 0)
        self.rows = min(rows, self.rows)

    def _slots(self, rows: int) -> range:
        return range(self.first, self.first + rows)

    def _allowed(self, rows: int) -> int:
        if rows > self.capacity:
            raise ValueError(
                f"{rows} sequences at a time are needed, in a cache with batch={self.capacity}; "
                f"make it with batch={rows}: every beam and every returned sequence counts"
            )
        return rows
