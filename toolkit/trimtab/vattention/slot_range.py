"""Consecutive slots with sequences of equal length, as transformers' caches have them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakSet

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
        self._left = self.length  # tokens of each sequence, as this range left them
        self._closed = False
        self._writer: threading.Thread | None = None
        self._interrupted: WeakSet[threading.Thread] = WeakSet()
        self._lock = threading.RLock()

    @property
    def length(self) -> int:
        """Tokens of each sequence."""
        return self.kv.length(self.first)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Have other threads wait within the block.

        Raises
        ------
        RuntimeError
            If the range is closed.
        """
        # Checked before locking: in a forked child the lock may be held forever.
        self.kv.pool.check_process()
        with self._lock:
            if self._closed:
                raise RuntimeError("the cache is closed; make another")
            yield

    def close(self) -> None:
        """Refuse every further use; closing again does nothing."""
        self.kv.pool.check_process()
        with self._lock:
            self._closed = True

    @contextmanager
    def claimed(self, *, going_on: bool = False) -> Iterator[None]:
        """Change the sequences within the block, alone.

        Other threads are kept from it until the sequences are empty again, or this one ends.

        Parameters
        ----------
        going_on : bool
            Whether tokens are to be appended that begin no text.

        Raises
        ------
        TrimtabError
            If another thread has tokens there, or has dropped those that this one would continue.
        RuntimeError
            If the range is closed.
        """
        current = threading.current_thread()
        with self.exclusive():
            other = self._writer
            if other is not None and other is not current and other.is_alive():
                raise TrimtabError(
                    f"the cache holds tokens of thread {other.name!r}, and thread "
                    f"{current.name!r} changes it: give each a cache of its own, or reset() it"
                )
            if going_on and current in self._interrupted and not self.length:
                raise TrimtabError(
                    f"the tokens of thread {current.name!r} were dropped by another thread's "
                    "reset(), so that its text cannot go on: reset() in this one to begin another"
                )
            self._interrupted.discard(current)
            self._writer = current
            yield

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
        TrimtabError
            If someone else has changed their lengths.
        KVOutOfMemory
            If there are no pages for all of them. They are as before.
        """
        if length <= self._left:
            return
        if length > (max_len := self.kv.geometry.max_len):
            raise ValueError(
                f"a length of {length} tokens is needed, in a cache with max_len={max_len}; make "
                f"it with max_len={length} or more, which takes addresses but no memory"
            )
        self._require_unchanged()
        self.kv.ensure(dict.fromkeys(self._slots(self.rows), length))
        self._left = length

    def shorten(self, length: int) -> None:
        """Cut every sequence to a length.

        Raises
        ------
        TrimtabError
            If someone else has changed their lengths, and the new one is not 0.
        """
        if length < self._left:
            if length:
                self._require_unchanged()
            for slot in self._slots(self.rows):
                self.kv.truncate(slot, length)
            self._left = length
        if not length:
            current = threading.current_thread()
            if self._writer is not None:
                self._interrupted.add(self._writer)
            self._interrupted.discard(current)
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

    def _require_unchanged(self) -> None:
        for slot in self._slots(self.rows):
            if (found := self.kv.length(slot)) != self._left:
                raise TrimtabError(
                    f"slot {slot} has {found} tokens, and this cache left {self._left} there: "
                    "another cache over the slot, or a call of kv, has changed it; use one cache "
                    "over a slot at a time, and make another with VirtualCache.over"
                )

    def _allowed(self, rows: int) -> int:
        if rows > self.capacity:
            raise ValueError(
                f"{rows} sequences at a time are needed, in a cache with batch={self.capacity}; "
                f"make it with batch={rows}: every beam and every returned sequence counts"
            )
        return rows
