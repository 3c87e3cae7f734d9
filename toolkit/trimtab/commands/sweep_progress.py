"""What is said when a job of a sweep begins and ends: which one, and how long the sweep has left.

Everything is read from the folders of the jobs, which other processes may be at.
"""

from __future__ import annotations

import time
from pathlib import Path

from hydra.core.hydra_config import HydraConfig

from trimtab.commands.sweep import sweep_folder
from trimtab.files import COMMAND, RESULT
from trimtab.method import Method
from trimtab.progress import duration, say
from trimtab.registry import stack_members, targets
from trimtab.sweep_state import ended, jobs_of, modified, more_jobs, started

START = ".hydra/overrides.yaml"  # what Hydra writes as a job begins, unless told not to


def begins(folder: Path, label: str) -> None:
    """Say which job of its sweep begins."""
    say(f"{_place(folder)}: {label}{_left()}")


def ends(folder: Path, error: str = "") -> None:
    """Say that a job has ended, once what it leaves is written."""
    start = folder / START
    after = f" after {duration(time.time() - modified(start))}" if start.exists() else ""
    how = f"failed{after}: {error}" if error else f"finished{after}"
    say(f"{_place(folder)}: {how}{_left()}")


def _place(folder: Path) -> str:
    """Return the number of a job, its folder's where that has one, and those of its sweep."""
    number = int(folder.name) if folder.name.isdigit() else HydraConfig.get().job.num
    jobs = jobs_of(sweep_folder())
    return f"Job {number} ({f'0 to {jobs - 1}' if jobs else 'of a search'})"


def _left() -> str:
    """Return how long the sweep has left, by what its finished jobs took; nothing without any."""
    sweep = sweep_folder()
    folders = [path for path in sweep.iterdir() if path.is_dir()]
    took = [
        modified(folder / RESULT) - modified(folder / START)
        for folder in folders
        if (folder / RESULT).exists() and (folder / START).exists()
    ]
    left = more_jobs(sweep)
    if not took or left == 0:
        return ""
    beside = max(1, len(set(filter(_has_begun, folders)) - ended(sweep)))
    more = ", plus calibrations yet to be made" if _may_calibrate(sweep) else ""
    return f" (about {duration(sum(took) / len(took) * left / beside)} left for the sweep{more})"


def _may_calibrate(sweep: Path) -> bool:
    """Return whether a job that has not ended names a method that is calibrated."""
    gone = ended(sweep)
    typed = [one for name, job in started(sweep).items() if sweep / name not in gone for one in job]
    stacks = {one.partition("=")[2] for one in typed if one.startswith("methods=")}
    held = {name for stack in stacks for name in stack_members(stack)}
    kinds = (kind for name, kind in targets("method").items() if name in held)
    return any(issubclass(kind, Method) and kind.calibrated for kind in kinds)


def _has_begun(folder: Path) -> bool:
    """Return whether a job has begun since the sweep was started or resumed."""
    start = folder / START
    return start.exists() and modified(start) >= modified(sweep_folder() / COMMAND)
