"""The threads of a decode step: one that fails does not have the others wait forever."""

from __future__ import annotations

import ctypes
from pathlib import Path
from queue import Queue
from threading import Thread

import pytest
import torch

from trimtab_kernels import build
from trimtab_kernels.decode_step import cpu

THREADS = 3
SOURCE = Path(__file__).with_name("team.cpp")
TEAM = build.CpuLibrary(name="team", sources=(SOURCE, *cpu.LIBRARY.sources[1:]), seconds=15)


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    if reason := build.load(TEAM):
        pytest.skip(reason)
    return ctypes.CDLL(str(TEAM.path))


def run(library: ctypes.CDLL, rounds: int, failing: int) -> int:
    """Return what a team returns, or fail where it has not after a while."""
    found: Queue[int] = Queue()

    def work() -> None:
        torch.set_num_threads(THREADS)
        found.put(library.team_of(ctypes.c_int64(rounds), ctypes.c_int64(failing)))

    try:
        Thread(target=work, daemon=True).start()
        return found.get(timeout=60)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("rounds", [1, 50])
@pytest.mark.parametrize("failing", range(THREADS))
def test_a_member_that_fails_ends_the_step_of_all(library, rounds, failing):
    assert run(library, rounds, failing) == -1
    assert run(library, rounds, -1) == THREADS
