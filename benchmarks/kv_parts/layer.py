"""The memory of one layer of transformers' caches, as counted by the system."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache

from kv_parts.setting import Options, kilobytes, llama


def held_by_layer(
    options: Options, slots: int, batches: Sequence[tuple[int, int]] | None
) -> tuple[int, int]:
    """Return the bytes that a layer of a transformers cache holds, and those at its peak.

    Parameters
    ----------
    options : Options
    slots : int
    batches : sequence of (int, int), optional
        Sequences and tokens of each dynamic cache. The last token is added separately, in one cache
        after the other; the peak is that of these updates. None for a static cache of all slots.
    """
    config = llama(options, 1)

    def update(cache: Any, rows: int, tokens: int) -> None:
        cache.update(*(states(options, rows, tokens) for _ in "kv"), 0)

    # The first static cache of a process causes imports, which are not to be counted.
    update(StaticCache(config, max_cache_len=1), 1, 1)
    taken = Taken(options.device)
    if batches is None:
        static = StaticCache(config, max_cache_len=options.max_len)
        update(static, slots, 1)
        return taken.now(), taken.peak()
    caches = [DynamicCache(config=config) for _ in batches]
    for cache, (rows, tokens) in zip(caches, batches, strict=True):
        update(cache, rows, tokens - 1)
    taken.give_back()
    taken.forget_peak()
    for cache, (rows, _) in zip(caches, batches, strict=True):
        update(cache, rows, 1)
    return taken.now(), taken.peak()


def states(options: Options, rows: int, tokens: int) -> Tensor:
    """Return keys or values of new tokens, in the shape that transformers' caches take."""
    shape = rows, options.kv_heads, tokens, options.head_dim
    return torch.randn(shape, dtype=options.dtype, device=options.device)


class Taken:
    """Memory taken since creation: resident on the host, held by PyTorch's allocator on a GPU."""

    def __init__(self, device: str) -> None:
        self._on_gpu = device != "cpu"
        gc.collect()
        self._start = 0
        self._start = self.now()
        self.forget_peak()

    def now(self) -> int:
        """Return the bytes taken, without freed memory that an allocator keeps for reuse."""
        self.give_back()
        if self._on_gpu:
            return torch.cuda.memory_reserved() - self._start
        return kilobytes("/proc/self/status", "VmRSS") - self._start

    def peak(self) -> int:
        """Return the most bytes taken at any time, including such memory."""
        if self._on_gpu:
            return torch.cuda.max_memory_reserved() - self._start
        return kilobytes("/proc/self/status", "VmHWM") - self._start

    def give_back(self) -> None:
        """Have the allocator give back the memory that it keeps for reuse."""
        if self._on_gpu:
            torch.cuda.empty_cache()
        else:
            ctypes.CDLL(None).malloc_trim(0)

    def forget_peak(self) -> None:
        """Start to measure `peak` anew."""
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5", "utf-8")
