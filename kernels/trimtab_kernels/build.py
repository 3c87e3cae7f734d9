"""C++ kernels for the CPU, compiled on first use for this machine's processor and kept.

One call of the compiler a library: torch.utils.cpp_extension would add Ninja and setuptools to
what must be installed, and its lock outlives a process that is killed while it builds.
"""

from __future__ import annotations

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
from pathlib import Path

import torch

HEADERS = tuple(Path(__file__).parent / name for name in ("cpu_common.h", "cpu_vector.h"))
"""What every library may include."""

FLAGS = ("-std=c++20", "-O3", "-march=native", "-ffp-contract=fast", "-fPIC", "-shared")


@dataclass(frozen=True)
class CpuLibrary:
    """A library of operators in C++.

    Parameters
    ----------
    name : str
        Of the binary, and of the operator ``trimtab::<name>_instruction_set() -> str`` that it
        defines.
    sources : tuple of Path
        The file to compile, then those that it includes.
    seconds : int
        What building takes, for the message.
    """

    name: str
    sources: tuple[Path, ...]
    seconds: int

    @property
    def path(self) -> Path:
        """Where the binary for this source, processor and PyTorch belongs.

        Under ``$TRIMTAB_CACHE``, or ``~/.cache/trimtab``; a folder shared between machines is fine.
        """
        cache = Path(os.environ.get("TRIMTAB_CACHE") or Path.home() / ".cache" / "trimtab")
        return cache / "kernels" / f"{self.name}-{_digest(self.sources)}.so"


@functools.cache
def load(library: CpuLibrary) -> str | None:
    """Register a library's kernels with PyTorch, after building them if they are not in the cache.

    Returns
    -------
    str or None
        Why there are none, where there is no compiler to build them; else None.

    Raises
    ------
    RuntimeError
        If the compiler refuses, with what it said.
    """
    path = library.path
    if not path.exists():
        compiler = _compiler()
        if compiler is None:
            return "no C++ compiler: none of $CXX, c++, g++ and clang++ is installed"
        path.parent.mkdir(parents=True, exist_ok=True)
        # The system drops the lock with the process, however that ends.
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                _build(library, compiler, path)
    torch.ops.load_library(path)
    return None


def describe(library: CpuLibrary, dtype: torch.dtype, kernel: str, otherwise: str) -> str:
    """Return in words which kernel runs for a dtype, or why `otherwise`, the reference, does."""
    if reason := load(library):
        return f"reference: {otherwise} ({reason})"
    instructions = getattr(torch.ops.trimtab, f"{library.name}_instruction_set")()
    threads = torch.get_num_threads()
    kind = str(dtype).removeprefix("torch.")
    return f"C++ {instructions} {kernel}, {kind}, {threads} thread{'s' * (threads != 1)}"


def _build(library: CpuLibrary, compiler: list[str], path: Path) -> None:
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
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(
                "The CPU kernels do not compile. This command failed:\n"
                f"{shlex.join(command)}\n{done.stderr.strip()}"
            )
        target.replace(path)


def _compiler() -> list[str] | None:
    for command in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        parts = shlex.split(command) if command else []
        if parts and shutil.which(parts[0]):
            return parts
    return None


def _digest(sources: tuple[Path, ...]) -> str:
    processor = "".join(
        line
        for line in Path("/proc/cpuinfo").read_text("utf-8").partition("\n\n")[0].splitlines(True)
        if line.startswith(("model name", "flags", "Features", "CPU part"))
    )
    code = (path.read_text("utf-8") for path in sources)
    parts = (*code, *FLAGS, torch.__version__, platform.machine(), processor)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
