"""The machine: in what pages its memory is, and what files are named by it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from kv_parts.setting import kilobytes

from trimtab.environment import describe_environment

ROLLUP, HUGE = "/proc/self/smaps_rollup", "AnonHugePages"
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def pages() -> dict[str, Any]:
    """Return what backs this process's memory now, in bytes, and what the system was asked for."""
    fields = {"resident": "Rss", "anonymous": "Anonymous", "anonymous_huge": HUGE}
    found: dict[str, Any] = {
        f"{name}_bytes": kilobytes(ROLLUP, field) for name, field in fields.items()
    }
    found["system"] = HUGE_PAGES.read_text("utf-8").strip() if HUGE_PAGES.exists() else None
    return found


def environment(seed: int) -> dict[str, Any]:
    """Return the machine, the software and the seed, with the variables that threads follow."""
    variables = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "KMP_AFFINITY", "LD_PRELOAD")
    given = {name: os.environ[name] for name in variables if name in os.environ}
    return describe_environment(seed) | {"variables": given}


def data_file(name: str) -> Path:
    """Return where a benchmark's data of this machine goes unless it is told otherwise."""
    cpu = re.sub(r"\(\w+\)|@.*|\b\d+-core\b|\bprocessor\b|\bcpu\b", " ", _cpu().lower())
    machine = "-".join(re.findall(r"[a-z0-9]+", cpu))
    return Path(__file__).parents[1] / "data" / f"{name}-{machine}.json"


def _cpu() -> str:
    return str(describe_environment(0)["cpu"])
