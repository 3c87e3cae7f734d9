"""What else the machine did while models were timed."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from typing_extensions import TypedDict

BUSY = 0.1  # share of the cores; a virtual machine may lose half as much to its host all the time
TICK = os.sysconf("SC_CLK_TCK")
PROC = Path("/proc")


class Load(TypedDict):
    """What ran beside the timings; see docs/results.md."""

    average_1m: float
    cores_beside: float
    processes_beside: int
    busy: bool
    reason: str


class LoadWatch:
    """Counts the processor time that others take, on the cores that this process may use."""

    def __init__(self) -> None:
        self._cores = os.sched_getaffinity(0)
        self._seconds = self._beside = 0.0
        self._processes: set[int] = set()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Count within the block; several blocks count together."""
        others, spent, own, started = _process_times(), *self._now()
        yield
        now_spent, now_own, now = self._now()
        self._seconds += now - started
        self._beside += max(0.0, now_spent - spent - (now_own - own))
        least = BUSY * (now - started)
        self._processes |= {
            process
            for process, seconds in _process_times().items()
            if seconds - others.get(process, 0.0) > least
        }

    @property
    def load(self) -> Load:
        """What was counted."""
        beside = self._beside / self._seconds if self._seconds else 0.0
        count, cores = len(self._processes), len(self._cores)
        busy = beside > BUSY * cores
        return {
            "average_1m": os.getloadavg()[0],
            "cores_beside": beside,
            "processes_beside": count,
            "busy": busy,
            "reason": (
                f"others took the time of {beside:.2f} of {cores} cores while models were timed "
                f"({'over' if busy else 'not over'} {BUSY:.0%}); other processes seen: {count}"
            ),
        }

    def _now(self) -> tuple[float, float, float]:
        """Return the seconds that the cores have worked, this process has, and a clock's."""
        return _worked(self._cores), time.process_time(), time.perf_counter()


def _worked(cores: set[int]) -> float:
    """Return the seconds that cores were not idle since they started.

    Time that the host gave to other machines (steal) was not idle.
    """
    ticks = 0
    for line in (PROC / "stat").read_text("ascii").splitlines():
        name, *fields = line.split()
        if name.startswith("cpu") and name[3:].isdecimal() and int(name[3:]) in cores:
            user, nice, system, _, _, interrupts, soft, steal = map(int, fields[:8])
            ticks += user + nice + system + interrupts + soft + steal
    return ticks / TICK


def _process_times() -> dict[int, float]:
    """Return the processor seconds of every other process so far, by its number."""
    found = {}
    for path in PROC.glob("[0-9]*/stat"):
        process = int(path.parent.name)
        if process != os.getpid():
            with suppress(OSError):  # it has ended meanwhile
                fields = path.read_text("utf-8", "replace").rpartition(")")[2].split()
                found[process] = (int(fields[11]) + int(fields[12])) / TICK
    return found
