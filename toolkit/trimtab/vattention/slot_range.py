"""The sequences of one batch in consecutive slots, as long as each other."""

from __future__ import annotations

from trimtab.vattention.virtual_kv import VirtualKV


class SlotRange:
    """Consecutive slots of a `VirtualKV` that hold sequences of one length.

    Growing and shortening do nothing the second time: the first layer of a step does it for all.

    Parameters
    ----------
    kv : VirtualKV
    first, capacity : int
        The slots: `capacity` of them from `first` on.
    owner : str
        Name of the config that the cache was made for, to be named in errors.
    borrowed : bool
        Whether the slots are somebody else's, who may share their pages with other slots.

    Attributes
    ----------
    rows : int
        How many sequences there are, in the first slots.
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

    @property
    def length(self) -> int:
        """Tokens in each sequence."""
        return self.kv.length(self.first)

    def begin(self, rows: int) -> None:
        """Take so many sequences, if those before have no token left."""
        if not self.length:
            self.rows = self._allowed(rows)

    def grow(self, length: int) -> None:
        """Grow every sequence to a length.

        Raises
        ------
        ValueError
            If it is above `max_len`.
        KVOutOfMemory
            If there are no pages for all of them. They are as they were.
        """
        if length <= self.length:
            return
        if length > (max_len := self.kv.geometry.max_len):
            raise ValueError(
                f"a length of {length} tokens was wanted, in a cache with max_len={max_len}; make "
                f"it with max_len={length} or more, which takes addresses and no memory"
            )
        self.kv.ensure(dict.fromkeys(self._slots(self.rows), length))

    def shorten(self, length: int) -> None:
        """Cut every sequence to a length."""
        if length < self.length:
            for slot in self._slots(self.rows):
                self.kv.truncate(slot, length)

    def widen(self, rows: int) -> None:
        """Make room for more sequences of the same length; what is in them is undefined."""
        if rows > self.rows:
            self.kv.ensure(dict.fromkeys(self._slots(self._allowed(rows)), self.length))
            self.rows = rows

    def narrow(self, rows: int) -> None:
        """Keep the first sequences only."""
        for slot in self._slots(self.rows)[rows:]:
            self.kv.truncate(slot, 0)
        self.rows = min(rows, self.rows)

    def _slots(self, rows: int) -> range:
        return range(self.first, self.first + rows)

    def _allowed(self, rows: int) -> int:
        if rows > self.capacity:
            raise ValueError(
                f"{rows} sequences at a time were wanted, in a cache with batch={self.capacity}; "
                f"make it with batch={rows}: every beam and every returned sequence counts"
            )
        return rows
