"""How fast the machine reads memory: the bound of a decode step, which reads every weight."""

from __future__ import annotations

import mmap
import time
from contextlib import suppress

import torch

from trimtab.backing import huge_page_bytes

READ_BYTES = 2**29  # more than any processor's caches hold


class Reader:
    """Reads memory in large pieces, with all of PyTorch's threads, or on a GPU.

    On the CPU its memory is in huge pages where the system gives them: the bound is the machine's,
    not that of the pages a model happens to be in.

    Parameters
    ----------
    device : torch.device
    parts : int
        What the memory is read in, one part a call: the next one has left the caches by then.

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
            numbers = torch.ones(READ_BYTES // 4, dtype=torch.float32, device=device)
        self.huge_share = (huge_page_bytes() - before) / READ_BYTES
        self._device = device
        self._parts = numbers.chunk(parts)
        self._calls = 0

    def __call__(self) -> float:
        """Read the next part, and return the rate in bytes per second."""
        part = self._parts[self._calls % len(self._parts)]
        self._calls += 1
        self._wait()
        started = time.perf_counter()
        part.sum()
        self._wait()
        return part.nbytes / (time.perf_counter() - started)

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
