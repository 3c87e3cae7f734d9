"""C++ kernels for the CPU, compiled on first use for this machine's processor, and cached.

Each library takes one call of the compiler. torch.utils.cpp_extension would require Ninja and
setuptools as well, and its lock outlives a process that is killed while building.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from os.path import expanduser
from pathlib import Path

import torch

HEADERS = tuple(
    Path(__file__).parent / name for name in ("cpu_common.h", "cpu_gradients.h", "cpu_vector.h")
)
"""Headers that every library may include."""

ELF = b"\x7fELF"  # how what a compiler makes begins
SHARED = 3  # the kind that a library is, by its 16th byte or, big-endian, its 17th

FLAGS = ("-std=c++20", "-O3", "-march=native", "-ffp-contract=fast", "-fPIC", "-shared")


@dataclass(frozen=True)
class CpuLibrary:
    """A library of operators in C++.

    Parameters
    ----------
    name : str
        Name of the binary. The library defines ``trimtab::<name>_instruction_set() -> str``.
    sources : tuple of Path
        The file to compile, then those that it includes.
    seconds : int
        How long building takes, for the message.
    """

    name: str
    sources: tuple[Path, ...]
    seconds: int

    @property
    def path(self) -> Path:
        """The path of the binary for this source, processor and PyTorch.

        Under ``$TRIMTAB_CACHE``, or ``~/.cache/trimtab``. Machines may share the folder.
        """
        cache = Path(expanduser(os.environ.get("TRIMTAB_CACHE") or "~/.cache/trimtab"))
        return cache / "kernels" / f"{self.name}-{_digest(self.sources)}.so"


@functools.cache
def load(library: CpuLibrary) -> str | None:
    """Register a library's kernels with PyTorch, and build them first if they are not cached.

    Returns
    -------
    str or None
        None, or the reason if there is no compiler that can build the kernels.

    Raises
    ------
    RuntimeError
        If the compiler fails, with its output.
    OSError
        If the cache cannot be written, or its disk is full.
    """
    path = library.path
    if not path.exists():
        compiler = _compiler()
        if compiler is None:
            return f"no C++ compiler: none of {_named()}, c++, g++ and clang++ is installed"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # The system releases the lock when the process ends, however that happens.
            with path.with_suffix(".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not path.exists() and (refused := _build(library, compiler, path)):
                    return refused
        except OSError as error:
            reason = f"{error.strerror}; name another folder for the kernels in TRIMTAB_CACHE"
            raise OSError(error.errno, reason, str(path.parent)) from error
    torch.ops.load_library(path)
    return None


def describe(library: CpuLibrary, dtype: torch.dtype, kernel: str, otherwise: str) -> str:
    """Return which kernel runs for a dtype, or why the reference, `otherwise`, runs instead."""
    if reason := load(library):
        return f"reference: {otherwise} ({reason})"
    instructions = getattr(torch.ops.trimtab, f"{library.name}_instruction_set")()
    threads = torch.get_num_threads()
    kind = str(dtype).removeprefix("torch.")
    return f"C++ {instructions} {kernel}, {kind}, {threads} thread{'s' * (threads != 1)}"


def _build(library: CpuLibrary, compiler: list[str], path: Path) -> str | None:
    """Compile a library, or return why this compiler cannot."""
    once = f"once, about {library.seconds} s"
    print(f"Building the CPU kernels ({once}): {library.name}", file=sys.stderr, flush=True)
    torch_folder = Path(torch.__file__).parent
    includes = [torch_folder / "include", torch_folder / "include/torch/csrc/api/include"]
    with tempfile.TemporaryDirectory(dir=path.parent) as temporary:
        target = Path(temporary) / path.name
        command = [
            *compiler,
            *FLAGS,
            *(f"-isystem{folder}" for folder in includes),
            str(library.sources[0]),
        ]
        command += ["-o", str(target), f"-L{torch_folder / 'lib'}", "-ltorch_cpu", "-lc10"]
        environment = {**os.environ, "TMPDIR": temporary}  # a full disk is this one, then
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            if os.strerror(errno.ENOSPC) in done.stderr:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if not _compiles(compiler):
                return f"{shlex.join(compiler)} cannot compile C++20: name one that can in $CXX"
            raise RuntimeError(
                "The CPU kernels do not compile. This command failed:\n"
                f"{shlex.join(command)}\n{done.stderr.strip()}"
            )
        if not _is_library(target):
            return f"{shlex.join(compiler)} made no library: name a C++ compiler in $CXX"
        target.replace(path)
    return None


def _is_library(path: Path) -> bool:
    """Return whether a file is a shared library: not an object, a program or a script."""
    head = path.read_bytes()[:18] if path.is_file() else b""
    return head.startswith(ELF) and SHARED in head[16:]


def _compiles(compiler: list[str]) -> bool:
    """Return whether a compiler takes C++20 at all, and finds its standard library."""
    command = [*compiler, "-std=c++20", "-fsyntax-only", "-x", "c++", "-"]
    source = "#include <optional>\nint main() { return 0; }\n"
    return not subprocess.run(command, input=source, capture_output=True, text=True).returncode


def _compiler() -> list[str] | None:
    """Return the command of $CXX, or else of the first compiler there is; say where it is else."""
    for command in (wanted := os.environ.get("CXX", ""), "c++", "g++", "clang++"):
        try:
            parts = shlex.split(command)
        except ValueError:  # a quotation mark too many
            continue
        if parts and shutil.which(parts[0]):
            if wanted.strip() and command != wanted:
                message = f"{_named()} is no command on this machine: {command} compiles instead"
                print(message, file=sys.stderr, flush=True)
            return parts
    return None


def _named() -> str:
    """Return what messages call the compiler that the environment names."""
    return f"CXX={wanted}" if (wanted := os.environ.get("CXX", "").strip()) else "$CXX"


def _digest(sources: tuple[Path, ...]) -> str:
    processor = "".join(
        line
        for line in Path("/proc/cpuinfo").read_text("utf-8").partition("\n\n")[0].splitlines(True)
        if line.startswith(("model name", "flags", "Features", "CPU part"))
    )
    code = (path.read_text("utf-8") for path in sources)
    parts = (*code, *FLAGS, torch.__version__, platform.machine(), processor)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
