"""The C++ compiler of this machine: which one it is, and what it cannot do."""

from __future__ import annotations

import errno
import functools
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

ELF = b"\x7fELF"  # how what a compiler makes begins
SHARED = 3  # the kind that a library is, by its 16th byte or, big-endian, its 17th

FLAGS = ("-std=c++20", "-O3", "-march=native", "-ffp-contract=fast", "-fPIC", "-shared")
PROBE = "#include <optional>\nint probe() { return std::optional<int>(1).value(); }\n"


def compile_library(compiler: Sequence[str], source: Path, target: Path) -> str | None:
    """Compile a library, or return why this compiler cannot.

    Raises
    ------
    RuntimeError
        If it takes C++20 and this processor, but not the source, with its output.
    OSError
        If the disk is full.
    """
    torch_folder = Path(torch.__file__).parent
    includes = [torch_folder / "include", torch_folder / "include/torch/csrc/api/include"]
    read = [*compiler, *FLAGS, *(f"-isystem{folder}" for folder in includes), str(source)]
    command = [*read, "-o", str(target), f"-L{torch_folder / 'lib'}", "-ltorch_cpu", "-lc10"]
    name = shlex.join(compiler)
    if failed := _failure(command, target.parent):
        if refused := _probed(tuple(compiler), target.parent.parent):
            return (
                f"{name} cannot compile C++20 for this processor ({refused}): name one that can "
                "in $CXX"
            )
        if _failure([*read, "-fsyntax-only"], target.parent):
            raise RuntimeError(
                "The CPU kernels do not compile. This command failed:\n"
                f"{shlex.join(command)}\n{failed}"
            )
        return (
            f"{name} takes the kernels' source and makes no library ({_first_error(failed)}): "
            "name another compiler in $CXX, or update its assembler and linker"
        )
    if not _is_library(target):
        return f"{name} made no library: name a C++ compiler in $CXX"
    return None


@functools.cache
def _probed(compiler: tuple[str, ...], folder: Path) -> str:
    """Return why no C++20 at all becomes a library for this processor; nothing where it does."""
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        command = [*compiler, *FLAGS, "-x", "c++", "-", "-o", str(Path(temporary) / "probe.so")]
        return _first_error(_failure(command, Path(temporary), PROBE))


def _failure(command: Sequence[str], folder: Path, source: str = "") -> str:
    """Return what a compiler says where it fails, and nothing where it does not.

    Parameters
    ----------
    folder : Path
        For its temporary files: a full disk is the folder's, then.
    source : str
        What it reads from standard input.
    """
    environment = {**os.environ, "TMPDIR": str(folder)}
    done = subprocess.run(
        command, input=source, capture_output=True, text=True, errors="replace", env=environment
    )
    if done.returncode and os.strerror(errno.ENOSPC) in done.stderr:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return (done.stderr.strip() or f"exit status {done.returncode}") if done.returncode else ""


def _first_error(said: str) -> str:
    lines = [line.strip() for line in said.splitlines()]
    return next((line for line in lines if "error" in line.lower()), next(iter(lines), ""))


def _is_library(path: Path) -> bool:
    """Return whether a file is a shared library: not an object, a program or a script."""
    head = path.read_bytes()[:18] if path.is_file() else b""
    return head.startswith(ELF) and SHARED in head[16:]


def find_compiler() -> list[str] | None:
    """Return the command of $CXX, or else of the first compiler there is; say where it is else."""
    for command in (wanted := os.environ.get("CXX", ""), "c++", "g++", "clang++"):
        try:
            parts = shlex.split(command)
        except ValueError:  # a quotation mark too many
            continue
        if parts and shutil.which(parts[0]):
            if wanted.strip() and command != wanted:
                message = f"{named()} is no command on this machine: {command} compiles instead"
                print(message, file=sys.stderr, flush=True)
            return parts
    return None


def named() -> str:
    """Return what messages call the compiler that the environment names."""
    return f"CXX={wanted}" if (wanted := os.environ.get("CXX", "").strip()) else "$CXX"
