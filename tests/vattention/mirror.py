"""A cache and a plain model of it: what every token holds, and which pages it takes."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import wait
from dataclasses import replace
from itertools import count
from typing import TypeVar

import torch
from torch import Tensor

from trimtab.vattention.pages import Access, PoolStats
from trimtab.vattention.pool import PagePool
from trimtab.vattention.settings import Layout
from trimtab.vattention.stats import KVStats
from trimtab.vattention.virtual_kv import VirtualKV

Stats = TypeVar("Stats", KVStats, PoolStats)
POISON = 0xFF  # as bytes of any float dtype: NaN


def make_cache(pool: PagePool, **more) -> VirtualKV:
    """Return a small cache whose tokens do not divide its pages: one page holds 21.3 tokens.

    Its layout is `slot` on every device; in `mega` a page holds 10.7. The sizes scale with the
    pool's page, so that in pages they are always the same.
    """
    shape = {"layers": 2, "slots": 4, "max_len": 200, "kv_heads": 2, "dtype": torch.float32}
    shape["head_dim"] = 24 * pool.page_bytes // 4096
    options = {"layout": Layout.slot, "lookahead": False}
    return VirtualKV(**{**shape, **options, **more}, pool=pool)


def counted(stats: Stats) -> Stats:
    """Return statistics without what a driver counts: that is for the device, whoever uses it."""
    return replace(stats, measured=0)


def rows(kv: VirtualKV, nbytes: int) -> float:
    """Return bytes of pages as a number of page rows."""
    return nbytes / (kv.geometry.planes * kv.page_bytes)


class Mirror:
    """Applies every operation to a cache and to a model of it, and compares them.

    Tokens are written once, when their slot grows, and only at the new positions.

    Attributes
    ----------
    tokens : dict of int to Tensor
        By slot in use, a number for every token. All its keys and values are this number plus the
        index of the tensor.
    pages : dict of int to list of int
        By slot in use, the page rows that hold its tokens. Equal numbers are one physical row.
    """

    def __init__(self, kv: VirtualKV) -> None:
        self.kv = kv
        self.tokens: dict[int, Tensor] = {}
        self.pages: dict[int, list[int]] = {}
        self._fresh_page = count()
        self._fresh_token = 0
        self._most_rows = 0

    @property
    def lengths(self) -> dict[int, int]:
        return {slot: len(tokens) for slot, tokens in self.tokens.items()}

    def acquire(self) -> int:
        slot = self.kv.acquire()
        assert slot not in self.tokens
        self.tokens[slot], self.pages[slot] = torch.zeros(0), []
        return slot

    def grown(self, lengths: Mapping[int, int]) -> dict[int, list[int]]:
        """Return the page rows once slots have grown: from the first row written on, their own."""
        grown = {slot: list(rows) for slot, rows in self.pages.items()}
        for slot, length in lengths.items():
            present, rows = len(self.tokens[slot]), grown[slot]
            if length == present:
                continue
            for index in range(self._start(present), self._end(length)):
                if index == len(rows):
                    rows.append(next(self._fresh_page))
                elif sum(rows[index] in other for other in grown.values()) > 1:
                    rows[index] = next(self._fresh_page)
        return grown

    def ensure(self, lengths: Mapping[int, int]) -> None:
        grown = self.grown(lengths)
        self.kv.ensure(lengths)
        self.pages = grown
        self._note_growth()
        for slot, length in lengths.items():
            new = torch.arange(length - len(self.tokens[slot])) + self._fresh_token
            self._fresh_token += len(new)
            self.tokens[slot] = torch.cat([self.tokens[slot], (new % 239).float()])
            for number, tensor in enumerate((*self.kv.keys, *self.kv.values)):
                part = tensor[slot, length - len(new) : length]
                part.copy_(self._content(slot, number)[length - len(new) :].expand_as(part))

    def truncate(self, slot: int, length: int) -> None:
        self.kv.truncate(slot, length)
        self.tokens[slot] = self.tokens[slot][:length]
        del self.pages[slot][self._end(length) :]

    def release(self, slot: int) -> None:
        self.kv.release(slot)
        del self.tokens[slot], self.pages[slot]

    def forked(self, source: int, length: int) -> list[int]:
        """Return the page rows of a fork: whole rows shared, the rest copied."""
        whole = self._start(length)
        return self.pages[source][:whole] + [
            next(self._fresh_page) for _ in range(whole, self._end(length))
        ]

    def fork(self, source: int, length: int) -> int:
        pages = self.forked(source, length)
        slot = self.kv.fork_prefix(source, length)
        assert slot not in self.tokens
        self.tokens[slot], self.pages[slot] = self.tokens[source][:length], pages
        self._note_growth()
        return slot

    def poison(self) -> None:
        """Fill with NaN everything writable that holds no live token."""
        table, row_bytes = self.kv._table, self.kv.row_bytes
        for slot, rows in enumerate(table.rows):
            end = len(self.tokens.get(slot, ())) * row_bytes
            for index, row in enumerate(rows):
                if row.access is Access.write:
                    live = min(max(0, end - index * table.page), table.page)
                    table.filled(slot, index, table.page)[:, live:] = POISON

    def check(self) -> None:
        """Assert that every live token holds what was written, and that the statistics agree."""
        for slot, tokens in self.tokens.items():
            assert self.kv.length(slot) == len(tokens)
            for number, tensor in enumerate((*self.kv.keys, *self.kv.values)):
                same = tensor[slot, : len(tokens)] == self._content(slot, number)
                assert same.all(), f"slot {slot}, tensor {number}: {self.lengths}"
        expected = [len(self.tokens.get(slot, ())) for slot in range(self.kv.geometry.slots)]
        assert self.kv.lengths.tolist() == expected
        self.check_stats()

    def check_stats(self) -> None:
        """Assert that the statistics of the cache and the pool agree with the model."""
        wait(self.kv._ahead._rows.values())
        stats, pool = self.kv.stats(), self.kv.pool.stats()
        page, geometry = self.kv.page_bytes, self.kv.geometry
        filled: dict[int, int] = {}
        for slot, rows in self.pages.items():
            for index, row in enumerate(rows):
                used = len(self.tokens[slot]) * self.kv.row_bytes - index * page
                filled[row] = max(filled.get(row, 0), min(page, used))
        rows_in_use = sum(map(len, self.pages.values()))
        size = geometry.planes * page
        assert stats.live == sum(filled.values()) * geometry.planes
        assert stats.committed - stats.cached == len(filled) * size
        assert stats.shared_saving == (rows_in_use - len(filled)) * size
        assert stats.wasted == stats.committed - stats.live
        assert stats.handles == stats.committed // page
        assert (stats.committed, stats.mapped) == (pool.committed, pool.mapped)
        assert stats.peak_committed >= max(stats.committed, self._most_rows * size)
        assert stats.reserved == geometry.reserved_bytes(page) == pool.reserved
        if self.kv.pool.backend == "host":
            assert stats.measured == stats.committed

    def _note_growth(self) -> None:
        """Remember the most page rows that live tokens ever needed at once."""
        needed = {row for rows in self.pages.values() for row in rows}
        self._most_rows = max(self._most_rows, len(needed))

    def _start(self, length: int) -> int:
        return length * self.kv.row_bytes // self.kv.page_bytes

    def _end(self, length: int) -> int:
        return -(-length * self.kv.row_bytes // self.kv.page_bytes)

    def _content(self, slot: int, number: int) -> Tensor:
        tensor = self.kv.keys[0]
        content = (self.tokens[slot] + number).to(tensor.device, tensor.dtype)
        return content[:, None, None]


def close(kv: VirtualKV) -> None:
    """Close a cache, and assert that its pool has everything back."""
    kv.close()
    stats = kv.pool.stats()
    assert (stats.committed, stats.mapped, stats.reserved, stats.handles) == (0, 0, 0, 0)
    assert stats.references == 0
    if kv.pool.backend == "host":
        assert stats.measured == 0
