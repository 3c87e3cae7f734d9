"""The KV cache: tensors reserved at full size, backed by pages only as far as they are used."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import wraps
from types import MappingProxyType
from typing import Concatenate, ParamSpec, Self, TypeVar

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

P = ParamSpec("P")
T = TypeVar("T")


def exclusive(
    method: Callable[Concatenate[VirtualKV, P], T],
) -> Callable[Concatenate[VirtualKV, P], T]:
    """Have a method of a cache wait for those that run in other threads."""

    @wraps(method)
    def held(kv: VirtualKV, /, *args: P.args, **kwargs: P.kwargs) -> T:
        # Checked before locking: in a forked child the lock may be held forever.
        kv.pool.check_process()
        with kv._lock:
            return method(kv, *args, **kwargs)

    return held


class VirtualKV:
    """Keys and values of sequences in slots, backed by pages as far as the sequences have grown.

    Only the positions of a slot below its length may be touched. Beyond them is nothing, which
    reads as zeros on the host, or what another sequence left there, possibly NaN. A mask does not
    help: an attention kernel that reads up to the longest length in every slot faults on a GPU, and
    elsewhere multiplies NaN by a weight of zero. Group slots by length, or use a kernel that stops
    at `lengths`. Write only to positions that the last `ensure` added: earlier ones may be shared
    with other slots, and writing to them then faults, as it does where nothing is.

    The tensors never move, so a captured graph or compiled step that uses them and `lengths` stays
    valid while the cache grows. Several threads may call it, each for slots of its own: calls wait
    for each other.

    Parameters
    ----------
    layers, slots, max_len, kv_heads, head_dim, dtype
        See `Geometry`.
    layout : Layout or str, optional
        See `Layout`. If None, ``slot`` on the host and ``mega`` on a GPU.
    page_group : int, optional
        Bytes of a page. If None, 64 KB on the host, and the driver's granularity (2 MB) on a GPU.
    device : str or torch.device
        Device of the pages, if no pool is given.
    budget : int, optional
        The most bytes of pages at a time; no limit if None. Live tokens are never given up for it;
        see `ensure`.
    lookahead : bool
        Whether to create and map the next page row of a slot in the background, once no more than
        an eighth of a page, or one token, is left of its last row.
    pool : PagePool, optional
        Where the pages come from. It may be shared between caches, and determines device, page and
        budget. If None, the cache makes one of its own.

    Attributes
    ----------
    lengths : Tensor
        int32 of shape ``[slots]`` on the device, updated in place.
    geometry : Geometry
    pool : PagePool

    Raises
    ------
    ValueError
        If a size is out of range, or a page or a budget is given in addition to a pool.
    TrimtabError
        If the device or its driver has no virtual memory management.
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
        layout: Layout | str | None = None,
        page_group: int | None = None,
        *,
        device: str | torch.device = "cpu",
        budget: int | None = None,
        lookahead: bool = True,
        pool: PagePool | None = None,
    ) -> None:
        self._lock = threading.RLock()
        if not isinstance(lookahead, bool):
            raise ValueError(f"lookahead={lookahead!r}; expected True or False")
        if pool is not None and not isinstance(pool, PagePool):
            raise ValueError(f"pool={pool!r:.60}; expected a PagePool")
        if pool is not None and (page_group, budget) != (None, None):
            raise ValueError(
                f"page_group={page_group}, budget={budget}; expected neither together with a pool, "
                "which has its own"
            )
        with ExitStack() as undo:
            self._owns_pool = pool is None
            if pool is None:
                pool = undo.enter_context(make_pool(torch.device(device), page_group, budget))
            self.pool = pool
            shape = layers, slots, max_len, kv_heads, head_dim
            self.geometry = Geometry(*shape, dtype, pool.layout(layout))
            self._storage = Storage(pool, self.geometry)
            undo.callback(pool.free, self._storage.reservation)
            undo.callback(self._storage.drop_tensors)
            self._slots = Slots(self.geometry.slots, self.geometry.max_len, pool.device)
            self.lengths = self._slots.device_lengths
            undo.pop_all()
        self._table = PageTable(pool, self.geometry, self._storage.reservation)
        self._ahead = LookAhead(self._table)
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
            # The original error matters more; its traceback may be what keeps tensors alive.
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

    @exclusive
    def length(self, slot: int) -> int:
        """Return the tokens in a slot, without asking the device."""
        self._check_usable()
        return self._slots.check(slot)

    @exclusive
    def acquire(self) -> int:
        """Return a free slot, now empty: the one that still has the most pages of its own.

        Raises
        ------
        RuntimeError
            If none is free.
        """
        slot = max(self._free_slots(), key=self._own_rows)
        self._slots.free.remove(slot)
        return slot

    @exclusive
    def acquire_all(self) -> None:
        """Take every free slot."""
        self._check_usable()
        self._slots.free.clear()

    @exclusive
    def ensure(self, lengths: Mapping[int, int]) -> None:
        """Grow slots to given lengths, pages first and `lengths` last; all of them, or none.

        If memory is short, cached pages make room: first rows prepared ahead, then those of
        released slots, then those beyond lengths.

        Parameters
        ----------
        lengths : mapping of int to int
            By slot, the tokens it is to have.

        Raises
        ------
        KVOutOfMemory, PageError
            If there are no pages. Every slot is as before.
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
            self._ahead.prepare(lengths, slots.lengths)

    @exclusive
    def truncate(self, slot: int, length: int) -> None:
        """Drop the tokens of a slot from `length` on; their pages stay cached.

        Raises
        ------
        ValueError, TypeError
            If the slot is not in use or has fewer tokens, or the length is no integer.
        """
        self._check_usable()
        length = self._slots.shorter(slot, length)
        self._table.mark(slot)
        self._slots.publish({slot: length})

    @exclusive
    def release(self, slot: int) -> None:
        """Free a slot; its pages stay cached for the next sequence until needed elsewhere."""
        self.truncate(slot, 0)
        self._slots.free.add(slot)

    @exclusive
    def fork_prefix(self, source: int, length: int) -> int:
        """Return a new slot that begins with the first `length` tokens of another.

        The slots share the physical pages that these tokens fill completely, and neither may write
        to them; the rest is copied.

        Raises
        ------
        RuntimeError
            If no slot is free.
        KVOutOfMemory, PageError
            If there is no page for the copy, or sharing fails. Every slot is as before.
        ValueError, TypeError
            If the source is not in use or has fewer tokens, or the length is no integer.
        """
        self._check_usable()
        length = self._slots.shorter(source, length)
        slot = min(self._free_slots(), key=self._own_rows)
        self._ahead.give_back([slot])
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

    @exclusive
    def trim(self) -> int:
        """Free every page that no live token needs, and return their bytes."""
        self._check_usable()
        before = len(self._table.all)
        prepared = self._ahead.give_back()
        self._table.cut(dict(enumerate(self._needs())))
        return (prepared + before - len(self._table.all)) * self._table.row_bytes

    @exclusive
    def sleep(self) -> None:
        """Copy what is live to ordinary memory of the host, and free all pages.

        The addresses stay. Until `wake`, only `stats` and `close` can be called.
        """
        self._check_usable()
        saved = save(self._table, self._slots.lengths)
        self._unmap_all()
        self._saved = saved

    @exclusive
    def wake(self) -> None:
        """Restore everything as it was before `sleep`, including what was shared.

        Raises
        ------
        KVOutOfMemory, PageError
            If there are not enough pages. The cache sleeps on, and can be woken later.
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

    @exclusive
    def stats(self) -> KVStats:
        """Return what the cache holds now."""
        self._check_open()
        prepared, lengths = self._ahead.ready(), self._slots.lengths
        return count(self._table, lengths, prepared, peak=self._peak, growths=self._growths)

    def close(self) -> None:
        """Free pages and addresses; closing again does nothing.

        Raises
        ------
        RuntimeError
            While someone else holds tensors over the cache.
        """
        if not self._closed:
            self._close()

    @exclusive
    def _close(self) -> None:
        self._storage.drop_tensors()
        self._unmap_all()
        self._ahead.close()
        self.pool.free(self._storage.reservation)
        if self._owns_pool:
            self.pool.close()
        self._saved = None
        self._closed = True

    def _unmap_all(self) -> None:
        self._ahead.give_back()
        for slot in range(self.geometry.slots):
            self._table.mark(slot)
        self._table.cut(dict.fromkeys(range(self.geometry.slots), 0))

    def _check_open(self) -> None:
        # The pool checks this too, but not every call reaches the pool.
        self.pool.check_process()
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
