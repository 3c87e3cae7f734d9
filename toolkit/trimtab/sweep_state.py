"""How far a sweep is, by what its jobs have left on disk; other processes may be at them."""

from __future__ import annotations

import json
from contextlib import suppress
from math import isfinite
from pathlib import Path
from typing import Any

from trimtab.files import COMMAND, ERROR, REPEAT, RESULT, RESULTS
from trimtab.settings import is_whole as is_whole_number

ENVIRONMENT = {"cpu", "threads", "gpu", "commit", "seed", "packages"}  # of every result


def jobs_of(sweep: Path) -> int | None:
    """Return how many jobs a sweep that was started in this folder has; None where nobody knows."""
    jobs: int | None = _command(sweep)["jobs"]
    return jobs


def started(sweep: Path) -> dict[str, list[str]]:
    """Return the overrides of the jobs of a sweep over every combination, by their folders.

    None are known of a sweeper of others.
    """
    return dict(_command(sweep)["started"] or {})


def interpolations(sweep: Path) -> list[tuple[list[str], dict[str, Any]]]:
    """Return jobs, by their overrides, with what ``${...}`` stood for as their sweep was started.

    There are none where no setting was written so.
    """
    found = _command(sweep).get("interpolated") or []
    return [(one["overrides"], one["settings"]) for one in found]


def job_folders(sweep: Path) -> list[Path]:
    """Return the folders of a sweep's jobs, begun or not; one that was copied beside them is none.

    None is known of a sweeper of others.
    """
    content = _command(sweep)
    names = content.get("started") or range(content["jobs"] or 0)
    return [sweep / str(name) for name in names]


def jobs_without_end(folder: Path) -> int:
    """Return how many jobs of a sweep over every combination have left no result and no error.

    0 where the folder is of something else.
    """
    content = read_json(folder / COMMAND)
    if not is_command(content) or not content.get("started"):
        return 0
    left = (REPEAT, *RESULTS)
    return sum(not any((one / name).exists() for name in left) for one in job_folders(folder))


def is_command(content: Any) -> bool:
    """Return whether a file's content is what `trimtab.commands.folders` writes."""
    if not isinstance(content, dict):
        return False
    started, jobs = content.get("started"), content.get("jobs")
    return (
        _are_texts(content.get("arguments"))
        and isinstance(content.get("folder"), str)
        and "jobs" in content
        and (jobs is None or (is_whole_number(jobs) and jobs > 0))
        and (started is None or (_are_jobs(started) and len(started) == jobs))
        and _are_resolved(content.get("interpolated") or [])
    )


def _are_jobs(started: Any) -> bool:
    """Return whether these are overrides by the names of folders within a sweep's."""
    return isinstance(started, dict) and all(
        _is_below(Path(name)) and _are_texts(overrides) for name, overrides in started.items()
    )


def _are_resolved(jobs: Any) -> bool:
    """Return whether these are jobs with settings of theirs."""
    return isinstance(jobs, list) and all(
        isinstance(job, dict)
        and _are_texts(job.get("overrides"))
        and isinstance(job.get("settings"), dict)
        for job in jobs
    )


def _is_below(path: Path) -> bool:
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def read_whole(path: Path) -> dict[str, Any] | None:
    """Return what a job left in a file; None where that is damaged or missing."""
    content = read_json(path)
    return dict(content) if is_whole(content) else None


def read_json(path: Path) -> Any:
    """Return what a file holds, whole or not; None where it is missing, a folder, or no JSON.

    A number that no float64 holds is none of JSON's, as programs read them.
    """
    with suppress(ValueError, OverflowError, FileNotFoundError, IsADirectoryError, RecursionError):
        return json.loads(
            path.read_text("utf-8"), parse_constant=_refuse, parse_float=_finite, parse_int=_whole
        )
    return None


def is_finished(folder: Path) -> bool:
    """Return whether a job has left what it need not be run again for."""
    return (folder / REPEAT).exists() or read_whole(folder / RESULT) is not None


def ended(sweep: Path) -> set[Path]:
    """Return the folders of the jobs that need no more time.

    An error from before the sweep was started or resumed is of a job that is run again.
    """
    return {one for one in job_folders(sweep) if is_finished(one) or _has_failed(one, sweep)}


def more_jobs(sweep: Path) -> int:
    """Return how many jobs of a sweep have not ended; 0 where nobody knows how many there are."""
    return max(0, (jobs_of(sweep) or 0) - len(ended(sweep)))


def _has_failed(folder: Path, sweep: Path) -> bool:
    with suppress(FileNotFoundError):  # a job that is run again takes its error away
        return modified(folder / ERROR) >= modified(sweep / COMMAND)
    return False


def _command(sweep: Path) -> dict[str, Any]:
    """Return what was typed, and what came of it."""
    return dict(json.loads((sweep / COMMAND).read_text("utf-8")))


def is_whole(content: Any) -> bool:
    """Return whether a job's content has what every job's has."""
    if not isinstance(content, dict) or not isinstance(content.get("label"), str):
        return False
    reasons = content.get("reasons", {})
    if not (
        _are_texts(content.get("overrides", []))
        and _are_texts(content.get("options", []))
        and isinstance(reasons, dict)
        and _are_texts([*reasons.values()])
    ):
        return False
    if content.get("status") != "ok":
        return content.get("status") == "error"
    environment = content.get("environment")
    return (
        isinstance(content.get("kernel"), str)
        and _are_texts(content.get("methods"))
        and isinstance(environment, dict)
        and environment.keys() >= ENVIRONMENT
        and (environment["seed"] is None or is_whole_number(environment["seed"]))
        and isinstance(environment["packages"], dict)
    )


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _finite(digits: str) -> float:
    if not isfinite(number := float(digits)):
        _refuse(digits)
    return number


def _whole(digits: str) -> int:
    float(number := int(digits))  # raises where it is too large
    return number


def modified(path: Path) -> float:
    """Return when a file was written, in seconds since the epoch."""
    return path.stat().st_mtime
