"""Building the C++ kernels: in processes of their own, with caches of their own."""

import os
import stat
import subprocess
import sys

import pytest
import torch

from kernels.sparse_linear import cpu
from tests.conftest import ROOT

USE = """
import torch
from kernels.sparse_linear import keep_above, keep_topk, kernel_name, sparse_linear

x, weight = torch.tensor([[3.0, 0.5, -2.0]]), torch.ones(3, 2)
assert keep_topk(x, 2).tolist() == [[3, 0, -2]]
assert torch.ops.trimtab.keep_topk(x, 3) is not x
assert keep_above(x, 1.0, 1).tolist() == [[3, 0, 0]]
assert sparse_linear(x, weight, torch.ones(2), 1.0).tolist() == [[2, 2]]
try:
    sparse_linear(x, weight, threshold=-1.0)
except ValueError as error:
    assert "threshold=-1" in str(error)
else:
    raise AssertionError
print(kernel_name("cpu", torch.float32))
"""


def start(cache, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", USE],
        cwd=ROOT,
        env={**os.environ, "TRIMTAB_CACHE": str(cache), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


@pytest.fixture
def copying_compiler(compiled, tmp_path):
    """Return a stand-in compiler that takes a second, keeps a log, and copies a finished build."""
    script, log = tmp_path / "compiler", tmp_path / "log"
    script.write_text(
        f'#!/bin/sh\necho "$@" >> {log}\nsleep 1\n'
        'while [ "$1" != -o ]; do shift; done\n'
        f'cp {cpu.library()} "$2"\n'
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return script, log


def test_processes_that_start_together_build_once(tmp_path, copying_compiler):
    script, log = copying_compiler
    cache = tmp_path / "cache"
    done = [finish(p) for p in [start(cache, CXX=str(script)) for _ in range(2)]]
    assert [code for code, _, _ in done] == [0, 0], done
    assert all(out.startswith("C++ ") for _, out, _ in done)
    assert sorted(len(err.splitlines()) for _, _, err in done) == [0, 1]
    assert "Building the CPU kernels (once, about " in done[0][2] + done[1][2]
    assert len(log.read_text().splitlines()) == 1
    assert {path.suffix for path in (cache / "kernels").iterdir()} == {".so", ".lock"}


def test_without_a_compiler_the_reference_runs_and_says_why(tmp_path):
    code, out, err = finish(start(tmp_path, PATH=str(tmp_path), CXX=""))
    assert code == 0, err
    assert out == (
        "reference: dense masked product in PyTorch "
        "(no C++ compiler: none of $CXX, c++, g++ and clang++ is installed)\n"
    )


def test_a_compiler_that_fails_is_an_error_with_its_words(tmp_path):
    script = tmp_path / "compiler"
    script.write_text("#!/bin/sh\necho cpu.cpp: no such header >&2\nexit 1\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    code, _, err = finish(start(tmp_path / "cache", CXX=str(script)))
    assert code != 0
    assert "RuntimeError: The CPU kernels do not compile." in err
    assert "cpu.cpp: no such header" in err
    assert not list((tmp_path / "cache" / "kernels").glob("*.so"))


def test_a_binary_is_of_one_source_and_one_pytorch(monkeypatch, tmp_path):
    names = {cpu.library().name}
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "0.0")
        names.add(cpu.library().name)
    with monkeypatch.context() as patch:
        changed = tmp_path / "cpu_select.h"
        changed.write_text("// changed")
        patch.setattr(cpu, "SOURCES", [*cpu.SOURCES[:-1], changed])
        names.add(cpu.library().name)
    assert len(names) == 3
