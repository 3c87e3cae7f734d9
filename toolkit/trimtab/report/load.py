"""Read what the jobs of sweeps left on disk."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from trimtab.errors import TrimtabError
from trimtab.files import FINISHED, RESULTS
from trimtab.report.derive import derived
from trimtab.report.job import Job
from trimtab.report.labels import labelled
from trimtab.sweep_state import read_whole


def load_jobs(*folders: Path) -> list[Job]:
    """Return the jobs of output folders and of sweeps, in the order they ran.

    Each is labelled by its own content, see `trimtab.report.labels`. A job whose file is damaged
    counts as failed; one that is in several folders counts once.

    Raises
    ------
    TrimtabError
        If a folder holds none.
    """
    roots: dict[Path, Path] = {}
    for root in folders:
        for folder in _jobs_in(root):
            if folder.resolve() not in {one.resolve() for one in roots}:
                roots[folder] = root
    read = ((folder, root, _content(folder)) for folder, root in roots.items())
    return labelled(Job(folder, content, content["label"], root) for folder, root, content in read)


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
    if not found:
        raise TrimtabError(f"{root} holds no {' and no '.join(RESULTS)}")
    return [root] if root in found else sorted(found, key=_order)


def _content(folder: Path) -> dict[str, Any]:
    result = folder / "result.json"
    path = result if result.exists() else folder / "error.json"
    with suppress(ValueError, TypeError, ArithmeticError, LookupError):
        if (content := read_whole(path)) is not None:
            return content | derived(content)
    message = f"{path.name} is damaged: truncated or edited since it was written; run the job again"
    return {"status": "error", "label": folder.name, "type": "Damaged", "message": message}


def _order(folder: Path) -> tuple[int, str]:
    return (int(folder.name) if folder.name.isdigit() else -1, str(folder))
