"""The machine: how fast it reads memory, in what pages, and what files are named by it."""

from __future__ import annotations

import mmap
import os
import re
import time
from pathlib import Path
from typing import Any

import torch
from kv_parts.setting import kilobytes

from trimtab.environment import describe_environment

READ_BYTES = 2**29  # more than any processor's caches hold
ROLLUP, HUGE = "/proc/self/smaps_rollup", "AnonHugePages"
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


class Reader:
    """Reads memory in large pieces, with all of PyTorch's threads.

    Its memory is in huge pages where the system gives them: the bound is the machine's, not that of
    the pages a model happens to be in.

    Attributes
    ----------
    huge_share : float
        How much of its memory got huge pages.
    """

    def __init__(self) -> None:
        region = mmap.mmap(-1, READ_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        region.madvise(mmap.MADV_HUGEPAGE)
        before = kilobytes(ROLLUP, HUGE)
        self._numbers = torch.frombuffer(region, dtype=torch.float32).fill_(1)
        self.huge_share = (kilobytes(ROLLUP, HUGE) - before) / READ_BYTES

    def __call__(self) -> None:
        self._numbers.sum()

    def bytes_per_s(self) -> float:
        """Read everything once, and return the rate."""
        started = time.perf_counter()
        self()
        return self._numbers.nbytes / (time.perf_counter() - started)


def pages() -> dict[str, Any]:
    """Return what backs this process's memory now, in bytes, and what the system was asked for."""
    fields = {"resident": "Rss", "anonymous": "Anonymous", "anonymous_huge": HUGE}
    found: dict[str, Any] = {
        f"{name}_bytes": kilobytes(ROLLUP, field) for name, field in fields.items()
    }
    found["system"] = HUGE_PAGES.read_text("utf-8").strip() if HUGE_PAGES.exists() else None
    return found


def environment(seed: int) -> dict[str, Any]:
    """Return the machine, the software and the seed, with the variables that threads follow."""
    variables = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "KMP_AFFINITY", "LD_PRELOAD")
    given = {name: os.environ[name] for name in variables if name in os.environ}
    return describe_environment(seed) | {"variables": given}


def data_file(name: str) -> Path:
    """Return where a benchmark's data of this machine goes unless it is told otherwise."""
    cpu = re.sub(r"\(\w+\)|@.*|\b\d+-core\b|\bprocessor\b|\bcpu\b", " ", _cpu().lower())
    machine = "-".join(re.findall(r"[a-z0-9]+", cpu))
    return Path(__file__).parents[1] / "data" / f"{name}-{machine}.json"


def _cpu() -> str:
    return str(describe_environment(0)["cpu"])
