"""The C++ kernels, compiled on first use for this machine's processor and kept.

One call of the compiler: torch.utils.cpp_extension would add Ninja and setuptools to what must
be installed, and its lock outlives a process that is killed while it builds.
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
from pathlib import Path

import torch

DTYPES = (torch.float32, torch.bfloat16)
FOLDER = Path(__file__).parent
SOURCES = [FOLDER / name for name in ("cpu.cpp", "cpu_common.h", "cpu_gather.h", "cpu_select.h")]
FLAGS = ("-std=c++20", "-O3", "-march=native", "-ffp-contract=fast", "-fPIC", "-shared")
BUILD_SECONDS = 15


@functools.cache
def load() -> str | None:
    """Register the C++ kernels with PyTorch, after building them if they are not in the cache.

    Returns
    -------
    str or None
        Why there are none, where there is no compiler to build them; else None.

    Raises
    ------
    RuntimeError
        If the compiler refuses, with what it said.
    """
    path = library()
    if not path.exists():
        compiler = _compiler()
        if compiler is None:
            return "no C++ compiler: none of $CXX, c++, g++ and clang++ is installed"
        path.parent.mkdir(parents=True, exist_ok=True)
        # The system drops the lock with the process, however that ends.
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                _build(compiler, path)
    torch.ops.load_library(path)
    return None


def describe(dtype: torch.dtype) -> str:
    """Return the name of the kernel for one token of this dtype, or why there is none."""
    reason = load()
    if reason:
        return f"reference: dense masked product in PyTorch ({reason})"
    instructions = torch.ops.trimtab.cpu_instruction_set()
    threads = torch.get_num_threads()
    kind = str(dtype).removeprefix("torch.")
    return f"C++ {instructions} gather-GEMV, {kind}, {threads} thread{'s' * (threads != 1)}"


def library() -> Path:
    """Return where the binary for this source, processor and PyTorch belongs.

    Under ``$TRIMTAB_CACHE``, or ``~/.cache/trimtab``; a folder shared between machines is fine.
    """
    cache = Path(os.environ.get("TRIMTAB_CACHE") or Path.home() / ".cache" / "trimtab")
    return cache / "kernels" / f"cpu-{_digest()}.so"


def _build(compiler: list[str], path: Path) -> None:
    print(f"Building the CPU kernels (once, about {BUILD_SECONDS} s)", file=sys.stderr, flush=True)
    torch_folder = Path(torch.__file__).parent
    includes = [torch_folder / "include", torch_folder / "include/torch/csrc/api/include"]
    with tempfile.TemporaryDirectory(dir=path.parent) as temporary:
        target = Path(temporary) / path.name
        command = [
            *compiler,
            *FLAGS,
            *(f"-isystem{folder}" for folder in includes),
            str(SOURCES[0]),
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


def _digest() -> str:
    processor = "".join(
        line
        for line in Path("/proc/cpuinfo").read_text("utf-8").partition("\n\n")[0].splitlines(True)
        if line.startswith(("model name", "flags", "Features", "CPU part"))
    )
    code = (path.read_text("utf-8") for path in SOURCES)
    parts = (*code, *FLAGS, torch.__version__, platform.machine(), processor)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
