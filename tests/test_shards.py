"""A calibration among several processes, as torchrun starts them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT, TINY, variables

LAROSA = [*TINY, "tokens=512", "window=64", "probe_tokens=192"]  # 8 windows, 3 of them probes
ADAPTIVOCAB = ["size=8", "max_bpb_increase=10", "mining_tokens=4096", "validation_tokens=192"]
STACK = [
    *TINY,
    "methods=[adaptivocab,larosa]",
    *(f"methods.adaptivocab.{one}" for one in [*ADAPTIVOCAB, "tokens=512", "window=64"]),
    *(f"methods.larosa.{one}" for one in LAROSA[len(TINY) :]),
]


@pytest.fixture
def torchrun(tmp_path: Path):
    """Start a script in several processes; `said` returns what they say."""

    def start(processes: int, script: Path, *arguments: str) -> subprocess.Popen[str]:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        return subprocess.Popen(
            [sys.executable, *launcher, str(script), *arguments],
            cwd=tmp_path,
            env={**variables(), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def said(process: subprocess.Popen[str]) -> tuple[str, list[str]]:
    """Return standard output, and the lines of standard error before torchrun's own report."""
    stdout, stderr = process.communicate(timeout=300)
    lines = stderr.splitlines()
    own = [number for number, line in enumerate(lines) if "torch/distributed" in line]
    return stdout, lines[: min(own, default=len(lines))]


def described(folder: Path) -> dict:
    content = json.loads((folder / "artifact.json").read_text())
    del content["run"], content["content_sha256"]
    return content


def artifacts(root: Path) -> list[Path]:
    return sorted(path.parent for path in root.rglob("artifact.json"))


@pytest.mark.parametrize(
    ("arguments", "processes"),
    [
        pytest.param(
            [*LAROSA, "residual=group", "group=2", "selection=capped"],
            3,
            id="larosa",
            marks=pytest.mark.exhaustive,
        ),
        pytest.param(
            [*LAROSA, "selection=auto", "allocation=auto"],
            2,
            id="larosa that chooses",
            marks=pytest.mark.exhaustive,
        ),
        pytest.param(STACK, 2, id="stack"),
    ],
)
def test_several_processes_make_the_artifacts_of_one(
    torchrun, command, tmp_path, arguments, processes
):
    one = command("calibrate.py", *arguments, "artifacts=one")
    assert one.returncode == 0, one.stderr
    calibration = torchrun(processes, ROOT / "calibrate.py", *arguments, "artifacts=shared")
    stdout, lines = said(calibration)
    assert calibration.returncode == 0, lines
    assert sum(line.startswith("Calibrated") for line in lines) == len(stdout.splitlines())
    assert stdout.replace("shared/", "one/") == one.stdout
    for first, second in zip(one.stdout.splitlines(), stdout.splitlines(), strict=True):
        # With the digest of every other file.
        assert described(tmp_path / first) == described(tmp_path / second)
    assert not any((tmp_path / "shared").rglob(".*"))
    assert len(list(tmp_path.glob("outputs/wandb/offline-run-*"))) == 2


@pytest.mark.exhaustive
def test_what_several_processes_began_one_can_finish(torchrun, command, tmp_path):
    arguments = [*TINY, "tokens=8192", "window=64", "probe_tokens=512"]
    shared = torchrun(2, ROOT / "calibrate.py", *arguments)
    deadline = time.monotonic() + 120
    while not any(tmp_path.glob("artifacts/*/*/.*/fisher/001.safetensors")):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    tasks = Path(f"/proc/{shared.pid}/task").glob("*/children")
    workers = sorted(int(pid) for task in tasks for pid in task.read_text().split())
    os.kill(workers[-1], signal.SIGKILL)
    said(shared)  # it ends
    assert shared.returncode != 0
    assert artifacts(tmp_path) == []
    again = command("calibrate.py", *arguments)
    assert again.returncode == 0, again.stderr
    assert "Activations ━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━ 3/3" not in again.stderr
    undisturbed = command("calibrate.py", *arguments, "artifacts=undisturbed")
    first, second = tmp_path / again.stdout.strip(), tmp_path / undisturbed.stdout.strip()
    assert described(first) == described(second)


@pytest.mark.parametrize(
    ("script", "arguments", "expected"),
    [
        pytest.param(
            "calibrate.py",
            [*LAROSA, "probe_tokens=64", "tracking.mode=disabled"],
            "2 processes share 1 windows of text: start at most 1, or",
            marks=pytest.mark.exhaustive,
        ),
        (
            "calibrate.py",
            ["-m", "sparsity=0.3,0.4"],
            "-m: torchrun's processes share one calibration",
        ),
        ("evaluate.py", TINY, "torchrun: its processes would measure the same"),
    ],
    ids=["text", "sweep", "evaluation"],
)
def test_a_mistake_is_said_once(torchrun, tmp_path, script, arguments, expected):
    mistaken = torchrun(2, ROOT / script, *arguments)
    stdout, lines = said(mistaken)
    assert mistaken.returncode == 1
    assert stdout == ""
    (line,) = (one for one in lines if "error:" in one)
    assert expected in line
    assert not any("Traceback" in one for one in lines)
    assert artifacts(tmp_path) == []


TOGETHER = """
import torch
from trimtab import shards
from trimtab.commands.messages import stop
from trimtab.commands.torchrun import one_speaks
from trimtab.errors import TrimtabError

with one_speaks():
    try:
        with shards.joined():
            windows = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
            own = shards.mine(windows)
            assert len(own) == (3, 3, 2)[shards.rank()]
            assert torch.equal(shards.whole(own), own if shards.rank() else windows)
            total = shards.summed(own.double().sum(0))
            assert torch.equal(total, windows.double().sum(0))
            parts = {"row": windows[0], "none": torch.zeros(0, 2), "one": torch.tensor(7).char()}
            found = shards.shared(parts if shards.rank() == 2 else {}, source=2)
            assert found.keys() == parts.keys()
            assert all(torch.equal(found[name], parts[name]) for name in parts)
            assert all(found[name].dtype == parts[name].dtype for name in parts)
            assert shards.agreed(shards.rank() + 0.5) == 0.5
            print(f"process {shards.rank()} of {shards.count()}", flush=True)
            if shards.rank() == 1:
                raise TrimtabError("only this process failed")
            shards.wait()
    except TrimtabError as error:
        stop(error)
"""


def test_all_end_where_one_fails_and_that_one_says_why(torchrun, tmp_path):
    (tmp_path / "together.py").write_text(TOGETHER)
    failing = torchrun(3, tmp_path / "together.py")
    stdout, lines = said(failing)
    assert stdout == "process 0 of 3\n"
    # A thread of PyTorch's that is ended with its process may say so.
    ours = [line for line in lines if not line.startswith("terminate called")]
    assert ours == ["together.py: error: only this process failed"]
    assert failing.returncode == 1
