"""What runs beside a measurement, as the system's files have it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from trimtab.evaluation import load
from trimtab.evaluation.load import TICK, LoadWatch


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a /proc of our own; ten seconds pass in a block, of which this process works four."""
    monkeypatch.setattr(load, "PROC", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2})
    clock: Iterator[float] = iter([100.0, 110.0, 200.0, 210.0])
    own: Iterator[float] = iter([1.0, 5.0, 5.0, 9.0])
    monkeypatch.setattr(load.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(load.time, "process_time", lambda: next(own))
    return tmp_path


def write(proc: Path, cores: list[float], processes: dict[int, float]) -> None:
    """Have cores 0, 1, ... have worked for so many seconds, and processes likewise."""
    lines = ["cpu 9 9 9 9 9 9 9 9 9 9"]
    for number, seconds in enumerate(cores):
        half = int(seconds * TICK / 2)
        lines.append(f"cpu{number} {half} 0 0 77 88 0 0 {half} 5 5")
    (proc / "stat").write_text("\n".join([*lines, "intr 1 2"]))
    for number, seconds in processes.items():
        (proc / str(number)).mkdir(exist_ok=True)
        fields = ["S", *["1"] * 10, str(int(seconds * TICK)), "0", *["1"] * 20]
        (proc / str(number) / "stat").write_text(f"{number} (a (b) c) {' '.join(fields)}")


@pytest.mark.parametrize(
    ("beside", "busy"), [(1.6, False), (3.0, True)], ids=["little", "a process"]
)
def test_the_time_that_others_take_of_our_cores_is_counted(proc, beside, busy):
    watch = LoadWatch()
    for block in range(2):
        write(proc, [20 * block, 0, 7], {os.getpid(): 1, 77: 3 + block, 78: 2})
        with watch.watching():
            # Core 1 is not ours; of core 0 this process has four seconds, others the rest.
            mine = 20 * block + 4 + beside
            write(proc, [mine, 10, 7], {os.getpid(): 9, 77: 3 + beside + block, 78: 2, 79: 0.1})
    found = watch.load
    assert found["cores_beside"] == pytest.approx(beside / 10, abs=1e-3)
    assert found["processes_beside"] == 1
    assert found["busy"] is busy
    assert f"the time of {beside / 10:.2f} of 2 cores" in found["reason"]


def test_the_systems_own_files_are_read():
    watch = LoadWatch()
    with watch.watching():
        sum(range(10**6))
    assert 0 <= watch.load["cores_beside"] <= 2 * len(os.sched_getaffinity(0))
    assert watch.load["average_1m"] >= 0
