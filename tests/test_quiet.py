"""Turns at timing, and a GPU for each process."""

import os
import threading
import time

import pytest

from trimtab import quiet
from trimtab.quiet import GPUS, take_gpu, timing_turn

HOLD = """
import sys, time
import os
from pathlib import Path
from trimtab.quiet import timing_turn
with timing_turn():
    Path("started").write_text(str(os.getpid()))
    Path("started").rename("timing")
    time.sleep(600)
"""


def test_a_turn_is_waited_for_and_ends_with_its_process(zygote, monkeypatch, capsys, tmp_path):
    cache = {"TRIMTAB_CACHE": str(tmp_path / "cache")}
    monkeypatch.setenv("TRIMTAB_CACHE", cache["TRIMTAB_CACHE"])
    with timing_turn():
        pass
    assert capsys.readouterr().err == ""
    zygote.start("-c", HOLD, cwd=tmp_path, output=tmp_path, **cache)
    deadline = time.monotonic() + 60
    while not (tmp_path / "timing").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    had = threading.Event()

    def take() -> None:
        with timing_turn():
            had.set()

    waiting = threading.Thread(target=take)
    waiting.start()
    assert not had.wait(0.2)
    holder = f"Process {(tmp_path / 'timing').read_text()}, -c in {tmp_path},"
    assert f"{holder} is timing on this machine: waiting" in capsys.readouterr().err
    zygote.kill()
    assert had.wait(60)
    waiting.join()


@pytest.mark.parametrize("place", ["/dev/null", "/proc/nowhere"])
def test_where_nothing_can_be_locked_nobody_is_waited_for(monkeypatch, place):
    monkeypatch.setenv("TRIMTAB_CACHE", place)
    with timing_turn():
        pass


@pytest.mark.parametrize("visible", ["", "4,GPU-b"])
def test_every_process_takes_a_gpu_that_no_other_has(monkeypatch, capsys, tmp_path, visible):
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    processes = []
    for expected in (visible or "0,1").split(","):
        monkeypatch.setenv(GPUS, visible)
        monkeypatch.setattr(quiet, "_taken", [])
        take_gpu()
        take_gpu()  # a process that runs a second job keeps its own
        assert os.environ[GPUS] == expected
        processes.append(quiet._taken)
    monkeypatch.setenv(GPUS, visible)
    monkeypatch.setattr(quiet, "_taken", [])
    take_gpu()
    assert os.environ[GPUS] == visible
    assert "More jobs at a time than the 2 GPUs" in capsys.readouterr().err
    for file in [one for files in processes for one in files]:
        file.close()
