"""The KV cache: tensors reserved in full, pages behind what is used of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from types import MappingProxyType
from typing import Self

import torch
from torch import Tensor

from trimtab.vattention.growth import fork, make_writable, missing
from trimtab.vattention.layout import Geometry
from trimtab.vattention.lookahead import LookAhead
from trimtab.vattention.pool import PagePool
from trimtab.vattention.settings import Layout
from trimtab.vattention.sleep import SavedRow, restore, save
from trimtab.vattention.slots import Slots
from trimtab.vattention.stats import KVStats, count
from trimtab.vattention.storage import Storage, make_pool
from trimtab.vattention.supply import Supply
from trimtab.vattention.table import PageTable

LEAD = 8  # A page over what is left of it when the next is prepared.


class VirtualKV:
    """Keys and values of sequences in slots, backed by pages as far as they have grown.

    Only the positions of a slot below its length may be touched. Beyond them there is nothing, or
    what another sequence left there, NaN included, and that masking does not help against: an
    attention kernel that reads up to the longest length for every slot faults on a GPU, and
    multiplies NaN by a weight of zero elsewhere. Group slots by length, or use a kernel that stops
    at `lengths`. Of the positions below the length, write those only that the last `ensure` added:
    earlier ones may be shared with other slots, and then a write to them faults.

    The tensors never move, so a captured graph or a compiled step that takes them and `lengths`
    stays valid while the cache grows. Use it from one thread at a time.

    Parameters
    ----------
    layers, slots, max_len, kv_heads, head_dim, dtype, layout
        See `Geometry`.
    page_group : int, optional
        Bytes of a page: 64 KB on the host, and what the driver can do (2 MB) on a GPU, where None.
    device : str or torch.device
        Of the pages, where no pool is given.
    budget : int, optional
        The most bytes of pages at a time; no limit where None. What is still needed is never
        given up for it: see `ensure`.
    lookahead : bool
        Whether to create the next page row of a slot in the background, when what is left of its
        last one is an eighth of a page, or a token.
    pool : PagePool, optional
        Where the pages come from; it may be shared between caches, and brings its device, page
        and budget. The cache makes one of its own where None.

    Attributes
    ----------
    lengths : Tensor
        int32 of shape ``[slots]`` on the device, updated in place.
    geometry : Geometry
    pool : PagePool

    Raises
    ------
    ValueError
        If a size cannot be used, or a page or a budget is given beside a pool.
    TrimtabError
        If the device or its driver cannot do this.
    PageError
        If the system has no addresses left.
    """

    def __init__(
        self,
        layers: int,
        slots: int,
        max_len: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        layout: Layout | str = Layout.slot,
        page_group: int | None = None,
        *,
        device: str | torch.device = "cpu",
        budget: int | None = None,
        lookahead: bool = True,
        pool: PagePool | None = None,
    ) -> None:
        shape = layers, slots, max_len, kv_heads, head_dim
        self.geometry = Geometry(*shape, dtype, Layout(layout))
        if pool is not None and (page_group, budget) != (None, None):
            raise ValueError(
                f"page_group={page_group}, budget={budget}; expected neither beside a pool, which "
                "has its own"
            )
        with ExitStack() as undo:
            self._owns_pool = pool is None
            if pool is None:
                pool = undo.enter_context(make_pool(torch.device(device), page_group, budget))
            self.pool = pool
            self._slots = Slots(slots, max_len, pool.device)
            self.lengths = self._slots.device_lengths
            self._storage = Storage(pool, self.geometry)
            undo.pop_all()
        self._table = PageTable(pool, self.geometry, self._storage.reservation)
        self._ahead = LookAhead(pool)
        self._supply = Supply(self._table, self._ahead)
        self._lookahead = lookahead
        self._saved: list[list[SavedRow]] | None = None
        self._closed = False
        self._peak = self._growths = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            self.close()
        except RuntimeError as refusal:
            # What failed is the news; its traceback may be what keeps tensors alive.
            if error is None:
                raise
            error.add_note(f"The cache was not closed: {refusal}")

    @property
    def keys(self) -> tuple[Tensor, ...]:
        """By layer, a tensor of shape ``[slots, max_len, kv_heads, head_dim]``."""
        self._check_usable()
        return self._storage.keys

    @property
    def values(self) -> tuple[Tensor, ...]:
        """By layer, a tensor of shape ``[slots, max_len, kv_heads, head_dim]``."""
        self._check_usable()
        return self._storage.values

    @property
    def page_bytes(self) -> int:
        """Bytes of a page."""
        return self._table.page

    @property
    def row_bytes(self) -> int:
        """Bytes of one token in one plane."""
        return self.geometry.row_bytes

    @property
    def reserved_bytes(self) -> int:
        """Bytes of addresses."""
        return self._storage.reservation.nbytes

    def length(self, slot: int) -> int:
        """Return the tokens in a slot, as the host knows them."""
        self._check_usable()
        return self._slots.check(slot)

    def acquire(self) -> int:
        """Return a free slot, empty: the one with the most pages of its own still behind it.

        Raises
        ------
        RuntimeError
            If none is free.
        """
        slot = max(self._free_slots(), key=self._own_rows)
        self._slots.free.remove(slot)
        return slot

    def ensure(self, lengths: Mapping[int, int]) -> None:
        """Grow slots to these lengths: pages first, then `lengths`; for all of them or for none.

        Where memory is short, cached pages make room: rows prepared ahead, then those of released
        slots, then those beyond lengths.

        Raises
        ------
        KVOutOfMemory, PageError
            If the pages cannot be had. Every slot is as it was.
        ValueError, TypeError
            If a slot is not in use, or a length is below the present one, above `max_len`, or no
            integer.
        """
        self._check_usable()
        table, slots = self._table, self._slots
        lengths = {slot: slots.longer(slot, length) for slot, length in lengths.items()}
        if missing(table, slots.lengths, lengths):
            with ExitStack() as undo:
                needs = self._needs(lengths)
                make_writable(undo, table, self._supply, slots.lengths, lengths, needs)
                slots.publish(lengths)
                undo.pop_all()
            self._grown()
        else:
            slots.publish(lengths)
        if self._lookahead:
            self._look_ahead(lengths)

    def truncate(self, slot: int, length: int) -> None:
        """Forget the tokens of a slot from `length` on; their pages stay cached.

        Raises
        ------
        ValueError, TypeError
            If the slot is not in use or has fewer tokens, or the length is no integer.
        """
        self._check_usable()
        length = self._slots.shorter(slot, length)
        self._table.mark(slot)
        self._slots.publish({slot: length})

    def release(self, slot: int) -> None:
        """Give a slot back; its pages stay, for the next to acquire it, until wanted elsewhere."""
        self.truncate(slot, 0)
        self._slots.free.add(slot)

    def fork_prefix(self, source: int, length: int) -> int:
        """Return a new slot that begins with the first `length` tokens of another.

        Pages that are full of them are the same physical pages, which neither slot may write to;
        what is left over is copied.

        Raises
        ------
        RuntimeError
            If no slot is free.
        KVOutOfMemory, PageError
            If there is no page for the copy, or sharing fails. Every slot is as it was.
        ValueError, TypeError
            If the source is not in use or has fewer tokens, or the length is no integer.
        """
        self._check_usable()
        length = self._slots.shorter(source, length)
        slot = min(self._free_slots(), key=self._own_rows)
        self._table.cut({slot: 0})
        with ExitStack() as undo:
            nbytes = length * self.row_bytes
            fork(undo, self._table, self._supply, self._needs(), source, slot, nbytes)
            self._slots.publish({slot: length})
            undo.pop_all()
        self._slots.free.remove(slot)
        if length:
            self._grown()
        return slot

    def trim(self) -> int:
        """Give back every page that no live token needs, and return their bytes."""
        self._check_usable()
        before = len(self._table.all)
        prepared = self._ahead.give_back()
        self._table.cut(dict(enumerate(self._needs())))
        return (prepared + before - len(self._table.all)) * self._table.row_bytes

    def sleep(self) -> None:
        """Move what is live to ordinary memory of the host and give all pages back.

        The addresses stay. Until `wake`, only `stats` and `close` are of use.
        """
        self._check_usable()
        saved = save(self._table, self._slots.lengths)
        self._unmap_all()
        self._saved = saved

    def wake(self) -> None:
        """Put everything back as it was before `sleep`, what was shared shared again.

        Raises
        ------
        KVOutOfMemory, PageError
            If there are not as many pages now. The cache sleeps on and can be woken later.
        RuntimeError
            If it is awake.
        """
        self._check_open()
        if self._saved is None:
            raise RuntimeError("the cache is awake; only one that sleeps can be woken")
        with ExitStack() as undo:
            restore(undo, self._table, self._supply, self._saved)
            undo.pop_all()
        self._saved = None
        self._grown()

    def stats(self) -> KVStats:
        """Return what the cache holds now."""
        self._check_open()
        prepared, lengths = self._ahead.ready(), self._slots.lengths
        return count(self._table, lengths, prepared, peak=self._peak, growths=self._growths)

    def close(self) -> None:
        """Give pages and addresses back; closing twice is closing once.

        Raises
        ------
        RuntimeError
            While somebody else holds tensors over the cache.
        """
        if self._closed:
            return
        self._storage.drop_tensors()
        self._unmap_all()
        self._ahead.close()
        self.pool.free(self._storage.reservation)
        if self._owns_pool:
            self.pool.close()
        self._saved = None
        self._closed = True

    def _look_ahead(self, slots: Iterable[int]) -> None:
        table = self._table
        last = table.needed(self.geometry.max_len)
        for slot in slots:
            rows = len(table.rows[slot])
            left = rows * table.page - self._slots.lengths[slot] * self.row_bytes
            if 0 < rows < last and left <= max(table.page // LEAD, self.row_bytes):
                self._ahead.prepare(slot, table.places(slot, rows))

    def _unmap_all(self) -> None:
        self._ahead.give_back()
        for slot in range(self.geometry.slots):
            self._table.mark(slot)
        self._table.cut(dict.fromkeys(range(self.geometry.slots), 0))

    def _check_open(self) -> None:
        # A pool checks that itself, but not every call comes to the pool.
        self.pool._check_process()
        if self._closed:
            raise RuntimeError("the cache is closed; make another")

    def _check_usable(self) -> None:
        self._check_open()
        if self._saved is not None:
            raise RuntimeError("the cache is asleep; wake it first")

    def _free_slots(self) -> list[int]:
        self._check_usable()
        if not self._slots.free:
            raise RuntimeError(
                f"all {self.geometry.slots} slots are in use; release one, or make a cache with "
                "more"
            )
        return sorted(self._slots.free)

    def _own_rows(self, slot: int) -> int:
        return sum(row.slots == 1 for row in self._table.rows[slot])

    def _needs(self, lengths: Mapping[int, int] = MappingProxyType({})) -> list[int]:
        """Return how many rows each slot needs once some have grown to these lengths."""
        present = enumerate(self._slots.lengths)
        return [self._table.needed(lengths.get(slot, length)) for slot, length in present]

    def _grown(self) -> None:
        self._growths += 1
        committed = (len(self._table.all) + self._ahead.ready()) * self._table.row_bytes
        self._peak = max(self._peak, committed)
