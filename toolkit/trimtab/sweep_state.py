"""How far a sweep is, by what its jobs have left on disk; other processes may be at them."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from trimtab.files import COMMAND, FINISHED, REPEAT, RESULT, RESULTS


def jobs_of(sweep: Path) -> int | None:
    """Return how many jobs a sweep that was started in this folder has; None where nobody knows."""
    content = json.loads((sweep / COMMAND).read_text("utf-8"))
    jobs: int | None = content["jobs"]
    return jobs


def read_whole(path: Path) -> dict[str, Any] | None:
    """Return what a job left in a file; None where that is damaged or missing."""
    with suppress(ValueError, FileNotFoundError):
        content = json.loads(path.read_text("utf-8"))
        if _is_whole(content):
            return dict(content)
    return None


def is_finished(folder: Path) -> bool:
    """Return whether a job has left what it need not be run again for."""
    return (folder / REPEAT).exists() or read_whole(folder / RESULT) is not None


def ended(sweep: Path) -> set[Path]:
    """Return the folders of the jobs that need no more time.

    An error from before the sweep was started or resumed is of a job that is run again.
    """
    found = set()
    for name in {*FINISHED, *RESULTS}:
        for path in sweep.glob(f"**/{name}"):
            with suppress(FileNotFoundError):  # a job that is run again takes its error away
                if is_finished(path.parent) or modified(path) >= modified(sweep / COMMAND):
                    found.add(path.parent)
    return found


def more_jobs(sweep: Path) -> int:
    """Return how many jobs of a sweep have not ended; 0 where nobody knows how many there are."""
    return max(0, (jobs_of(sweep) or 0) - len(ended(sweep)))


def _is_whole(content: Any) -> bool:
    """Return whether a job's content has what every job's has."""
    if not isinstance(content, dict) or not {"status", "label"} <= content.keys():
        return False
    if content["status"] != "ok":
        return True
    environment = content.get("environment")
    packages = environment.get("packages") if isinstance(environment, dict) else None
    return isinstance(packages, dict) and {"kernel", "methods"} <= content.keys()


def modified(path: Path) -> float:
    """Return when a file was written, in seconds since the epoch."""
    return path.stat().st_mtime
