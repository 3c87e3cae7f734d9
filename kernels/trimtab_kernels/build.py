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
import sys
import tempfile
from dataclasses import dataclass
from os.path import expanduser
from pathlib import Path

import torch

from trimtab_kernels.compiler import FLAGS, compile_library, find_compiler, named

HEADERS = tuple(
    Path(__file__).parent / name for name in ("cpu_common.h", "cpu_gradients.h", "cpu_vector.h")
)
"""Headers that every library may include."""

DIGEST = hashlib.sha256().digest_size  # of a binary, at its end


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
        If the cache cannot be written, its disk is full, or no library can be loaded from it.
    """
    path = library.path
    try:
        if not _is_whole(path):
            compiler = find_compiler()
            if compiler is None:
                return f"no C++ compiler: none of {named()}, c++, g++ and clang++ is installed"
            path.parent.mkdir(parents=True, exist_ok=True)
            # The system releases the lock when the process ends, however that happens.
            with path.with_suffix(".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not _is_whole(path) and (refused := _build(library, compiler, path)):
                    return refused
    except OSError as error:
        raise _unusable(path, error.errno, error.strerror) from error
    try:
        torch.ops.load_library(path)
    except OSError as error:
        said = str(error.__cause__ or error).removeprefix(f"{path}: ")
        reason = f"no library can be loaded from there, as in a folder mounted noexec ({said})"
        raise _unusable(path, errno.EACCES, reason) from error
    return None


def describe(library: CpuLibrary, dtype: torch.dtype, kernel: str, otherwise: str) -> str:
    """Return which kernel runs for a dtype, or why the reference, `otherwise`, runs instead."""
    if reason := load(library):
        return f"reference: {otherwise} ({reason})"
    instructions = getattr(torch.ops.trimtab, f"{library.name}_instruction_set")()
    threads = torch.get_num_threads()
    kind = str(dtype).removeprefix("torch.")
    return f"C++ {instructions} {kernel}, {kind}, {threads} thread{'s' * (threads != 1)}"


def _unusable(path: Path, number: int | None, reason: str | None) -> OSError:
    advice = f"{reason}; name another folder for the kernels in TRIMTAB_CACHE"
    return OSError(number, advice, str(path.parent))


def _build(library: CpuLibrary, compiler: list[str], path: Path) -> str | None:
    """Build a library, or return why this compiler cannot."""
    once = f"once, about {library.seconds} s"
    print(f"Building the CPU kernels ({once}): {library.name}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as temporary:
        target = Path(temporary) / path.name
        if refused := compile_library(compiler, library.sources[0], target):
            return refused
        made = target.read_bytes()
        with target.open("ab") as file:  # which no loader reads
            file.write(hashlib.sha256(made).digest())
        target.replace(path)
    return None


def _is_whole(path: Path) -> bool:
    """Return whether a binary is in the cache, as it was written: one cut short would crash."""
    content = path.read_bytes() if path.exists() else b""
    made, written = content[:-DIGEST], content[-DIGEST:]
    return hashlib.sha256(made).digest() == written


def _digest(sources: tuple[Path, ...]) -> str:
    processor = "".join(
        line
        for line in Path("/proc/cpuinfo").read_text("utf-8").partition("\n\n")[0].splitlines(True)
        if line.startswith(("model name", "flags", "Features", "CPU part"))
    )
    code = (path.read_text("utf-8") for path in sources)
    parts = (*code, *FLAGS, torch.__version__, platform.machine(), processor)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
