"""Building the C++ kernels, in separate processes with separate caches."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shlex
import stat
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from tests.conftest import ROOT
from trimtab_kernels import build
from trimtab_kernels.decode_attention.cpu import LIBRARY as DECODE_ATTENTION
from trimtab_kernels.decode_step.cpu import LIBRARY as DECODE_STEP
from trimtab_kernels.sparse_linear.cpu import LIBRARY as SPARSE_LINEAR

USE = """
import torch
from trimtab_kernels import decode_attention as attention
from trimtab_kernels.sparse_linear import keep_above, keep_topk, kernel_name, sparse_linear

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

keys, values = torch.zeros(2, 2, 3, 1, 8)
one, lengths = torch.ones(2, 1, 8), torch.tensor([2, 0], dtype=torch.int32)
attention.append_kv(keys, values, one, one, lengths)
assert values.sum((2, 3)).tolist() == [[0, 8, 0], [0, 0, 0]]
mixed = attention.decode_attention(torch.zeros(2, 4, 8), keys, values, lengths, 1.0)
assert mixed.sum(2).tolist() == [[4] * 4, [0] * 4]
for call in (
    lambda: attention.decode_attention(one, keys, values, lengths.long(), 1.0),
    lambda: attention.append_kv(keys, values, one, one, lengths.long()),
):
    try:
        call()
    except ValueError as error:
        assert "lengths is torch.int64" in str(error)
    else:
        raise AssertionError
print(attention.kernel_name("cpu", torch.float32))
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
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


def writes_script(path, content):
    path.write_text(f"#!/bin/sh\n{content}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def copying_compiler(compiled, tmp_path):
    """Return a stand-in compiler that logs its calls, waits a second and copies finished builds."""
    for library in (SPARSE_LINEAR, DECODE_ATTENTION, DECODE_STEP):
        build.load(library)
    log = tmp_path / "log"
    script = writes_script(
        tmp_path / "compiler",
        f'echo "$@" >> {log}\nsleep 1\n'
        'while [ "$1" != -o ]; do shift; done\n'
        f'cp "{SPARSE_LINEAR.path.parent}/$(basename "$2")" "$2"',
    )
    return script, log


def test_processes_that_start_together_build_once(tmp_path, copying_compiler):
    script, log = copying_compiler
    cache = tmp_path / "cache"
    done = [finish(p) for p in [start(cache, CXX=str(script)) for _ in range(2)]]
    assert [code for code, _, _ in done] == [0, 0], done
    for _, out, _ in done:
        assert re.fullmatch(r"C\+\+ .* gather-GEMV, .*\nC\+\+ .* decode attention, .*\n", out)
    messages = sorted(line for _, _, err in done for line in err.splitlines())
    assert len(messages) == 2
    for message, name in zip(messages, ("decode_attention", "sparse_linear"), strict=True):
        assert re.fullmatch(rf"Building the CPU kernels \(once, about \d+ s\): {name}", message)
    assert len(log.read_text().splitlines()) == 2
    assert {path.suffix for path in (cache / "kernels").iterdir()} == {".so", ".lock"}


def build_all(cache, **environment):
    return subprocess.run(
        [sys.executable, "-m", "trimtab_kernels"],
        env={**os.environ, "TRIMTAB_CACHE": str(cache), **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_all_libraries_are_built_ahead(tmp_path, copying_compiler):
    script, log = copying_compiler
    made = [build_all(tmp_path, CXX=str(script)) for _ in range(2)]
    assert [(one.returncode, one.stdout) for one in made] == [(0, made[0].stdout)] * 2, made
    assert len(log.read_text("utf-8").splitlines()) == 3
    paths = {str(path) for path in (tmp_path / "kernels").glob("*.so")}
    assert {*made[0].stdout.splitlines()} == paths
    assert len(paths) == 3


def test_what_cannot_be_built_ahead_is_told_on_one_line(tmp_path):
    none = build_all(tmp_path, PATH=str(tmp_path), CXX="")
    reason = "no C++ compiler: none of $CXX, c++, g++ and clang++ is installed"
    assert (none.returncode, none.stderr) == (1, f"decode_step: {reason}\n")
    (tmp_path / "file").touch()
    none = build_all(tmp_path / "file")
    assert none.returncode == 1
    (line,) = none.stderr.splitlines()
    assert line.startswith(f"decode_step: {tmp_path / 'file' / 'kernels'}: ")
    assert line.endswith("name another folder for the kernels in TRIMTAB_CACHE")


def test_without_a_compiler_the_reference_runs_and_says_why(tmp_path):
    code, out, err = finish(start(tmp_path, PATH=str(tmp_path), CXX=""))
    assert code == 0, err
    reason = "(no C++ compiler: none of $CXX, c++, g++ and clang++ is installed)"
    assert out.splitlines() == [
        f"reference: dense masked product in PyTorch {reason}",
        f"reference: one slot at a time in PyTorch {reason}",
    ]


@pytest.fixture
def loaded(monkeypatch, tmp_path):
    """Return a function that loads a library with a compiler of this content, into one cache."""
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.ops, "load_library", lambda path: None)

    def load(content, library=SPARSE_LINEAR):
        monkeypatch.setenv("CXX", str(writes_script(tmp_path / "compiler", content)))
        return build.load.__wrapped__(library)

    return load


@pytest.mark.parametrize(
    ("refused", "said", "told"),
    [
        ("*", "unrecognized option -std=c++20", "unrecognized option -std=c++20"),
        ("*", "in x:\\nfatal error: optional", "fatal error: optional"),
        ("*-march=native*", "error: no -march=native", "error: no -march=native"),
        ("*-o*", "x.s: Error: no such instruction", "x.s: Error: no such instruction"),
    ],
)
def test_a_compiler_that_is_no_good_is_refused_for_what_it_says(
    tmp_path, loaded, refused, said, told
):
    script = f"""case "$*" in {refused}) printf "{said}\\n" >&2; exit 1;; esac"""
    reason = f"cannot compile C++20 for this processor ({told}): name one that can in $CXX"
    assert loaded(script) == f"{tmp_path / 'compiler'} {reason}"


def test_an_assembler_that_lacks_an_instruction_is_refused_for_what_it_says(tmp_path, loaded):
    told = "x.s: Error: no such instruction: vpdpbusd"
    script = f"""case "$*" in *-fsyntax-only*);; *.cpp*) echo "{told}" >&2; exit 1;; esac"""
    assert loaded(script) == (
        f"{tmp_path / 'compiler'} takes the kernels' source and makes no library ({told}): name "
        "another compiler in $CXX, or update its assembler and linker"
    )


def test_a_compiler_is_probed_once_for_all_libraries(tmp_path, loaded):
    log = tmp_path / "log"
    for library in (SPARSE_LINEAR, DECODE_ATTENTION):
        assert "no -march" in loaded(f'echo "$@" >> {log}; echo "no -march" >&2; exit 1', library)
    calls = log.read_text("utf-8").splitlines()
    assert [("cpu.cpp" in call) for call in calls] == [True, False, True]


def cut_short(content):
    return content[: len(content) // 2]


def blanked(content):
    return content[:20] + bytes(len(content) - 20)


@pytest.mark.parametrize("damage", [cut_short, blanked, lambda content: b""])
def test_a_binary_that_is_damaged_is_built_anew(tmp_path, loaded, damage):
    log = tmp_path / "log"
    script = f"""
echo "$@" >> {log}
while [ "$1" != -o ]; do shift; done
printf "\\177ELF%012d\\003\\000what follows" 0 > "$2"
"""
    for _ in range(2):
        assert loaded(script) is None
    assert len(log.read_text("utf-8").splitlines()) == 1
    path = SPARSE_LINEAR.path
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert loaded(script) is None
    assert path.read_bytes() == whole


@pytest.mark.parametrize("wanted", ["no-such-compiler -O1", "g++ '"])
def test_a_compiler_that_is_not_there_is_named_and_another_compiles(
    tmp_path, copying_compiler, wanted
):
    script, _ = copying_compiler
    script.rename(tmp_path / "c++")
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    code, out, err = finish(start(tmp_path / "cache", CXX=wanted, PATH=path))
    assert code == 0, err
    assert f"CXX={wanted} is no command on this machine: c++ compiles instead\n" in err
    assert re.fullmatch(r"C\+\+ .* gather-GEMV, .*\nC\+\+ .* decode attention, .*\n", out)
    code, out, err = finish(start(tmp_path / "none", CXX=wanted, PATH=str(tmp_path / "none")))
    assert code == 0, err
    assert f"(no C++ compiler: none of CXX={wanted}, c++, g++ and clang++ is installed)" in out


WRITES_TEXT = """sh -c 'while [ "$1" != -o ]; do shift; done; echo text > "$2"'"""


@pytest.mark.parametrize(
    "made", ["true", WRITES_TEXT, pytest.param("c++ -c", marks=pytest.mark.exhaustive)]
)
def test_a_compiler_that_makes_no_library_is_named_and_the_reference_runs(tmp_path, made):
    code, out, err = finish(start(tmp_path / "cache", CXX=made))
    assert code == 0, err
    reason = f"{shlex.join(shlex.split(made))} made no library: name a C++ compiler in $CXX"
    assert out.splitlines() == [
        f"reference: dense masked product in PyTorch ({reason})",
        f"reference: one slot at a time in PyTorch ({reason})",
    ]
    assert not list((tmp_path / "cache" / "kernels").glob("*.so"))


@pytest.mark.parametrize("full", [False, True])
def test_a_cache_that_cannot_be_written_is_named_with_its_variable(tmp_path, monkeypatch, full):
    if full:
        script = writes_script(
            tmp_path / "compiler", 'echo "as: $TMPDIR/x.s: No space left on device" >&2\nexit 1'
        )
        monkeypatch.setenv("CXX", str(script))
    else:
        (tmp_path / "cache").touch()
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(
        OSError, match="name another folder for the kernels in TRIMTAB_CACHE"
    ) as error:
        build.load.__wrapped__(SPARSE_LINEAR)
    assert error.value.filename == str(tmp_path / "cache" / "kernels")
    assert error.value.errno == (errno.ENOSPC if full else errno.ENOTDIR)


def test_a_cache_that_no_library_can_be_loaded_from_is_named_with_its_variable(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    path, content = SPARSE_LINEAR.path, b"to the loader as little as a library in a noexec folder"
    path.parent.mkdir(parents=True)
    path.write_bytes(content + hashlib.sha256(content).digest())
    told = r"^no library can be loaded .* noexec \([^/]*\); name another folder for the kernels in"
    with pytest.raises(OSError, match="noexec") as error:
        build.load.__wrapped__(SPARSE_LINEAR)
    assert re.match(told, error.value.strerror)
    assert error.value.filename == str(path.parent)


def test_a_compiler_that_fails_is_an_error_with_its_output(tmp_path):
    script = writes_script(
        tmp_path / "compiler",
        'case "$*" in *cpu.cpp*) echo cpu.cpp: no such header >&2; exit 1;; esac\ncat > /dev/null',
    )
    code, _, err = finish(start(tmp_path / "cache", CXX=str(script)))
    assert code != 0
    assert "RuntimeError: The CPU kernels do not compile." in err
    assert "cpu.cpp: no such header" in err
    assert not list((tmp_path / "cache" / "kernels").glob("*.so"))


@pytest.mark.parametrize("library", [SPARSE_LINEAR, DECODE_ATTENTION], ids=lambda one: one.name)
def test_a_binary_belongs_to_one_source_and_one_pytorch(library, monkeypatch, tmp_path):
    names = {library.path.name}
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "0.0")
        names.add(library.path.name)
    changed = tmp_path / "changed.h"
    changed.write_text("// changed")
    for index in range(len(library.sources)):
        sources = [*library.sources]
        sources[index] = changed
        names.add(replace(library, sources=tuple(sources)).path.name)
    assert len(names) == 2 + len(library.sources)


@pytest.mark.parametrize("library", [SPARSE_LINEAR, DECODE_ATTENTION], ids=lambda one: one.name)
def test_every_file_that_is_compiled_is_a_source(library):
    included = {library.sources[0]}
    for path in library.sources:
        for name in re.findall(r'^#include "(.+)"', path.read_text("utf-8"), re.MULTILINE):
            included.add((path.parent / name).resolve())
    assert included == {path.resolve() for path in library.sources}
