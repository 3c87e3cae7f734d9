"""Read what the jobs of sweeps left on disk."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from trimtab.errors import TrimtabError, as_text
from trimtab.evaluation.schema import SCHEMA
from trimtab.files import COMMAND, FINISHED, RESULTS
from trimtab.report.derive import derived
from trimtab.report.job import Job
from trimtab.report.labels import labelled
from trimtab.sweep_state import is_whole, read_json


def load_jobs(*folders: Path) -> list[Job]:
    """Return the jobs of output folders and of sweeps, as `load` does."""
    return load(*folders)[0]


def load(*folders: Path) -> tuple[list[Job], list[str]]:
    """Return the jobs of output folders and of sweeps in the order they ran, and what is left out.

    Each is labelled by its own content, see `trimtab.report.labels`. A job whose file is damaged
    counts as failed; one that is in several folders counts once. A result of another version of
    the format is left out, with a line that names it, and so is a sweep of which no job has ended.

    Raises
    ------
    TrimtabError
        If a folder is not there, or holds none and is no sweep's; or there is none but those left
        out.
    """
    roots: dict[Path, Path] = {}
    jobs, left_out = [], []
    for root in folders:
        if not (found := _jobs_in(root)):
            if not root.is_dir():
                raise TrimtabError(f"{root}: there is no such folder")
            lacks = f"{root} holds no {' and no '.join(RESULTS)}"
            if not (root / COMMAND).exists():
                raise TrimtabError(lacks)
            left_out.append(f"{lacks}: none of its jobs has ended")
        for folder in found:
            if folder.resolve() not in {one.resolve() for one in roots}:
                roots[folder] = root
    for folder, root in roots.items():
        try:
            content = _content(folder)
        except _OtherSchemaError as error:
            left_out.append(str(error))
        else:
            jobs.append(Job(folder, content, content["label"], root))
    if not jobs:
        raise TrimtabError("; ".join(left_out))
    return labelled(jobs), left_out


def state(folders: Iterable[Path]) -> dict[Path, int]:
    """Return the files that jobs left, with the time each was written."""
    patterns = [(folder, f"**/{name}") for folder in folders for name in {*RESULTS, *FINISHED}]
    found = {}
    for path in (path for folder, pattern in patterns for path in folder.glob(pattern)):
        with suppress(FileNotFoundError):  # a job that is run again takes its error away
            found[path] = path.stat().st_mtime_ns
    return found


def _jobs_in(root: Path) -> list[Path]:
    found = {path.parent for name in RESULTS for path in root.glob(f"**/{name}")}
    return [root] if root in found else sorted(found, key=_order)


class _OtherSchemaError(Exception):
    """A result is of a version of the format that this one cannot read."""


def _content(folder: Path) -> dict[str, Any]:
    result = folder / "result.json"
    path = result if result.exists() else folder / "error.json"
    found = _as_texts(read_json(path))
    if isinstance(found, dict) and found.get("status") == "ok" and found.get("schema") != SCHEMA:
        raise _OtherSchemaError(
            f"{path} has schema {found.get('schema')!r}, expected {SCHEMA}: measure it again, or "
            "report it with the version of Trimtab that wrote it"
        )
    with suppress(ValueError, TypeError, ArithmeticError, LookupError):
        if is_whole(found):
            return found | derived(found)
    message = f"{path.name} is damaged: truncated or edited since it was written; run the job again"
    return {"status": "error", "label": folder.name, "type": "Damaged", "message": message}


def _as_texts(value: Any) -> Any:
    """Return a JSON value with texts that every file and picture can hold."""
    if isinstance(value, dict):
        return {as_text(name): _as_texts(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_as_texts(item) for item in value]
    return as_text(value) if isinstance(value, str) else value


def _order(folder: Path) -> tuple[int, str]:
    return (int(folder.name) if folder.name.isdigit() else -1, str(folder))
