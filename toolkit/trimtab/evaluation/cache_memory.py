"""Bytes of transformers' KV caches: by their tensors, and as the system counts them."""

from __future__ import annotations

import gc
import mmap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, UntypedStorage

PAGEMAP = Path("/proc/self/pagemap")
# Of an entry of the page map: in memory, or swapped out (Linux, admin-guide/mm/pagemap).
HELD = np.uint64(1 << 63 | 1 << 62)


class CacheKind(StrEnum):
    """One of transformers' caches."""

    dynamic = "dynamic"
    static = "static"


@dataclass(frozen=True)
class CacheMemory:
    """Bytes of one cache.

    Attributes
    ----------
    live, committed : int
        Of its tensors, and of the storage under them.
    measured : int or None
        The storage as the system counts it; None where it does not say.
    """

    live: int
    committed: int
    measured: int | None


def cache_memory(make: Callable[[], Any], device: torch.device) -> CacheMemory:
    """Measure the cache that `make` returns, and drop it.

    On the host, the system says which pages of the storage are in memory. On a GPU, where an
    allocator takes memory in segments, what counts is how much the driver gets back when the cache
    is gone.
    """
    cache = make()
    live, committed = cache_bytes(cache)
    if device.type != "cuda":
        return CacheMemory(live, committed, resident_bytes(_storages(cache)))
    before = _driver_free_bytes(device)
    del cache
    return CacheMemory(live, committed, _driver_free_bytes(device) - before)


def batch_memory(cache: Any, lengths: Sequence[int]) -> CacheMemory:
    """Measure a cache of a padded batch; live are the tokens of its texts, without their padding.

    Parameters
    ----------
    lengths : sequence of int
        Tokens of each text in the cache.
    """
    live = 0
    for tensor in _tensors(cache):
        rows, _, room, _ = tensor.shape
        own = sum(min(length, room) for length in lengths)
        live += own * (tensor.nbytes // (rows * room))
    storages = _storages(cache)
    committed = sum(storage.nbytes() for storage in storages)
    on_host = all(storage.device.type == "cpu" for storage in storages)
    return CacheMemory(live, committed, resident_bytes(storages) if on_host else None)


def cache_bytes(cache: Any) -> tuple[int, int]:
    """Return the bytes of a transformers cache: of its tensors, and of the storage under them."""
    live = sum(tensor.numel() * tensor.element_size() for tensor in _tensors(cache))
    return live, sum(storage.nbytes() for storage in _storages(cache))


def resident_bytes(storages: Iterable[UntypedStorage]) -> int | None:
    """Return the bytes of the host's pages that hold any of these; None where it does not say.

    Pages that were never written to do not exist and are not counted; swapped ones are.
    """
    page = mmap.PAGESIZE
    numbers = [
        np.arange(start // page, -(-(start + storage.nbytes()) // page))
        for storage in storages
        if (start := storage.data_ptr()) and storage.nbytes()
    ]
    if not numbers:
        return 0
    pages = np.unique(np.concatenate(numbers))
    # Whole runs of pages are read at once: one page at a time would take long.
    runs = np.split(pages, np.flatnonzero(np.diff(pages) > 1) + 1)
    held = 0
    try:
        with PAGEMAP.open("rb", buffering=0) as file:
            for run in runs:
                file.seek(int(run[0]) * 8)
                entries = np.frombuffer(file.read(len(run) * 8), np.uint64)
                held += int(np.count_nonzero(entries & HELD))
    except OSError:
        return None
    return held * page


def _tensors(cache: Any) -> list[Tensor]:
    return [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]


def _storages(cache: Any) -> list[UntypedStorage]:
    storages = [tensor.untyped_storage() for tensor in _tensors(cache)]
    return [*{storage.data_ptr(): storage for storage in storages}.values()]


def _driver_free_bytes(device: torch.device) -> int:
    gc.collect()
    torch.cuda.empty_cache()
    return int(torch.cuda.mem_get_info(device)[0])
