"""What a measurement ran on, and what was fixed before it: threads and seeds."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch.backends import cuda
from transformers import set_seed

PACKAGES = (
    "trimtab", "torch", "transformers", "triton", "numpy", "scipy", "safetensors", "wandb",
    "lm-eval",
)  # fmt: skip
MEMORY, CONTROL_GROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
SDPA_KERNELS = {
    "flash": cuda.flash_sdp_enabled,
    "mem_efficient": cuda.mem_efficient_sdp_enabled,
    "math": cuda.math_sdp_enabled,
    "cudnn": cuda.cudnn_sdp_enabled,
}
PATIENCE = 20  # seconds that a program may take to say what is asked


def prepare(seed: int, threads: int | None) -> None:
    """Seed every generator and set the number of CPU threads."""
    set_seed(seed)
    if threads is not None:
        torch.set_num_threads(threads)


def package_versions() -> dict[str, str | None]:
    """Return the versions of the packages a figure depends on; None where not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


class _AbsentError(Exception):
    """Says why something of the environment is not known."""


def describe_environment(seed: int) -> dict[str, Any]:
    """Return the machine, the software and the seed, as result.json's `environment`."""
    return environment_and_reasons(seed)[0]


def environment_and_reasons(seed: int) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the environment, and by its names why what is None is not known.

    That may be `gpu`, `driver`, `cuda` and `commit`.
    """
    found: dict[str, str | None] = {}
    reasons: dict[str, str] = {}
    readers = {"gpu": _gpu, "driver": _gpu_driver, "cuda": _cuda, "commit": _commit}
    for name, read in readers.items():
        try:
            found[name] = read()
        except _AbsentError as error:
            found[name], reasons[name] = None, str(error)
    environment = {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "sdpa_kernels": [name for name, enabled in SDPA_KERNELS.items() if enabled()],
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpu": found["gpu"],
        "driver": found["driver"],
        "cuda": found["cuda"],
        "system": platform.platform(),
        "packages": package_versions(),
        "commit": found["commit"],
        "seed": seed,
    }
    return environment, reasons


def peak_host_bytes() -> int:
    """Return the largest resident set of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def available_host_bytes() -> int:
    """Return how much memory this process can take on the host, swapping nothing out.

    A limit of its control group counts; what that has read of files, and can drop, does not.
    """
    available = 1024 * _entry(MEMORY, "MemAvailable:")
    limit, used, stat = (CONTROL_GROUP / f"memory.{name}" for name in ("max", "current", "stat"))
    if limit.exists() and (most := limit.read_text("utf-8").strip()) != "max":
        kept = int(used.read_text("utf-8")) - _entry(stat, "inactive_file")
        available = min(available, max(int(most) - kept, 0))
    return available


def _entry(path: Path, name: str) -> int:
    """Return the number beside a name in one of the system's files."""
    lines = (line.split() for line in path.read_text("utf-8").splitlines())
    return next(int(parts[1]) for parts in lines if parts[0] == name)


def cpu_model() -> str:
    """Return the processor's name, or its architecture where the system does not tell."""
    for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _gpu() -> str:
    if not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        raise _AbsentError("no CUDA device" if built else "PyTorch is built without CUDA")
    return torch.cuda.get_device_name()


def _gpu_driver() -> str:
    _require_cuda()
    return _first_line(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])


def _cuda() -> str | None:
    _require_cuda()
    return torch.version.cuda


def _require_cuda() -> None:
    _gpu()
    if torch.version.cuda is None:
        raise _AbsentError(f"PyTorch is built for ROCm {torch.version.hip}")


def _commit() -> str:
    """Return the checkout's commit, with `+changes` where tracked files differ from it."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        raise _AbsentError("not run from a git checkout")
    git = ["git", "--no-optional-locks", "-C", str(root)]
    commit = _first_line([*git, "rev-parse", "HEAD"])
    changed = _first_line([*git, "status", "--porcelain", "--untracked-files=no"])
    return f"{commit}+changes" if changed else commit


def _first_line(command: list[str]) -> str:
    """Return the first line that a program prints, empty where it prints nothing.

    Raises
    ------
    _AbsentError
        If there is no such program, or it fails: with what it says.
    """
    program = command[0]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    except FileNotFoundError as error:
        raise _AbsentError(f"{program} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise _AbsentError(f"{program} took more than {PATIENCE} s") from error
    except OSError as error:
        raise _AbsentError(f"{program} cannot be run: {error.strerror}") from error
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).partition("\n")[0]
        raise _AbsentError(f"{program}: {said or f'exit status {done.returncode}'}")
    return done.stdout.partition("\n")[0]
