"""Runs units one after the other, whatever happens to one of them."""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Sequence

import torch

from gpu_parts.record import Record
from gpu_parts.unit import Unit
from trimtab.progress import duration, say

STARTED = "TRIMTAB_GPU_BENCHMARK_STARTED"
"""The variable by which a process that takes the place of another knows when that one began."""


def started() -> float:
    """Return when this command began, in seconds of the epoch."""
    return float(os.environ.get(STARTED, time.time()))


def run_units(
    units: Sequence[Unit], record: Record, began: float, limit: float | None
) -> list[Unit]:
    """Measure what is not in the record yet, and return what is left.

    A unit that failed before the command began is tried again. Those that a run ended during come
    last: if one never ends, it keeps no other from being measured.

    Parameters
    ----------
    units : sequence of Unit
    record : Record
    began : float
        When the command began, in seconds of the epoch.
    limit : float or None
        After how many seconds no other unit is begun.
    """
    left = [
        unit
        for unit in units
        if record.result(unit.name) is None and record.error(unit.name, began) is None
    ]
    left.sort(key=lambda unit: record.unfinished(unit.name))
    if len(left) < len(units):
        say(f"{len(units) - len(left)} of {len(units)} are measured already")
    while left and (limit is None or time.time() - began < limit):
        unit = left.pop(0)
        say(f"{duration(time.time() - began)}: {unit.name}, {len(left)} after it")
        record.begin(unit.name)
        _run(unit, record, began)
    return left


def _run(unit: Unit, record: Record, began: float) -> None:
    at = time.perf_counter()
    try:
        result = unit.measure()
        record.keep(unit.name, time.perf_counter() - at, result)
    except Exception as error:  # of any type: it says what happened, and the rest goes on
        record.fail(unit.name, error)
        say(f"{unit.name} failed: {record.error(unit.name)}")
    gc.collect()
    if torch.cuda.is_available():
        _require_context(began)
        torch.cuda.empty_cache()


def _require_context(began: float) -> None:
    """Begin again in a new process if this one can no longer use the GPU, as after a bad address.

    What is recorded stays, and what failed since the command began is not tried again.
    """
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        say(f"the GPU is lost to this process, another one goes on: {error}".partition("\n")[0])
        sys.stdout.flush()
        environment = {**os.environ, STARTED: repr(began)}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
