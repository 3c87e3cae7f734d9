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
from transformers import set_seed

PACKAGES = (
    "trimtab", "torch", "transformers", "triton", "numpy", "scipy", "safetensors", "wandb",
    "lm-eval",
)  # fmt: skip


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


def describe_environment(seed: int) -> dict[str, Any]:
    """Return the machine, the software and the seed, as result.json's `environment`.

    `gpu` and `driver` are None without a CUDA device, `commit` outside a git checkout.
    """
    has_gpu = torch.cuda.is_available()
    return {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpu": torch.cuda.get_device_name() if has_gpu else None,
        "driver": _gpu_driver() if has_gpu else None,
        "cuda": torch.version.cuda if has_gpu else None,
        "system": platform.platform(),
        "packages": package_versions(),
        "commit": _commit(),
        "seed": seed,
    }


def peak_host_bytes() -> int:
    """Return the largest resident set of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def cpu_model() -> str:
    """Return the processor's name, or its architecture where the system does not tell."""
    for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _gpu_driver() -> str | None:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return _first_line(query)


def _commit() -> str | None:
    """Return the checkout's commit, with `+changes` where tracked files differ from it."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    git = ["git", "--no-optional-locks", "-C", str(root)]
    commit = _first_line([*git, "rev-parse", "HEAD"])
    changed = _first_line([*git, "status", "--porcelain", "--untracked-files=no"])
    return f"{commit}+changes" if commit and changed else commit


def _first_line(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(done.stdout.splitlines()), None)
