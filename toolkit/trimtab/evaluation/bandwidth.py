"""How fast the machine reads memory: the bound of a decode step, which reads every weight."""

from __future__ import annotations

import mmap
import time
from contextlib import suppress

import torch
from torch import Tensor

from trimtab.backing import huge_page_bytes

READ_BYTES = 2**29  # more than any processor's caches hold
# On a GPU: 1.8 ms at 4.8 TB/s, beside which a kernel's start and end are short.
GPU_READ_BYTES, PASSES = 2**30, 8


class Reader:
    """Reads memory in large pieces, with all of PyTorch's threads, or on a GPU.

    On the CPU its memory is in huge pages where the system gives them: the bound is the machine's,
    not that of the pages a model happens to be in. On a GPU all of it is read several times in a
    row, by the device's own clock.

    Parameters
    ----------
    device : torch.device
    parts : int
        What the memory is read in on the CPU, one part a call: the next one has left the caches by
        then.

    Attributes
    ----------
    huge_share : float
        How much of its memory got huge pages; 0 on a GPU.
    """

    def __init__(self, device: torch.device, parts: int = 1) -> None:
        before = huge_page_bytes()
        if device.type == "cpu":
            region = mmap.mmap(-1, READ_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            with suppress(OSError):  # a kernel without huge pages
                region.madvise(mmap.MADV_HUGEPAGE)
            numbers = torch.frombuffer(region, dtype=torch.float32).fill_(1)
        else:
            numbers = torch.ones(GPU_READ_BYTES // 4, dtype=torch.float32, device=device)
        self.huge_share = (huge_page_bytes() - before) / READ_BYTES
        self._numbers = numbers
        self._parts = numbers.chunk(parts)
        self._calls = 0

    def __call__(self) -> float:
        """Read the next part, or on a GPU all; return the rate in bytes per second."""
        if self._numbers.is_cuda:
            with torch.cuda.device_of(self._numbers):
                return rate_by_events(self._numbers)
        part = self._parts[self._calls % len(self._parts)]
        self._calls += 1
        started = time.perf_counter()
        part.sum()
        return part.nbytes / (time.perf_counter() - started)


def rate_by_events(numbers: Tensor) -> float:
    """Return the bytes per second at which the current device reads a tensor.

    One more pass runs before the clock starts: while it does, the others are submitted.
    """
    started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    numbers.sum()
    started.record()
    for _ in range(PASSES):
        numbers.sum()
    ended.record()
    ended.synchronize()
    return PASSES * numbers.nbytes / (1e-3 * started.elapsed_time(ended))
