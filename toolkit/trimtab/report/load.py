"""Read what the jobs of a sweep left on disk."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.errors import TrimtabError
from trimtab.files import RESULTS


@dataclass(frozen=True)
class Job:
    """One job: its result, or the error it ended with.

    Attributes
    ----------
    folder : Path
    content : dict
        Of result.json or error.json.
    label : str
        What tells it from the others of its report.
    """

    folder: Path
    content: dict[str, Any]
    label: str

    @property
    def ok(self) -> bool:
        return bool(self.content["status"] == "ok")

    def get(self, name: str) -> Any:
        """Return the field with this dotted name, or None where it was not measured."""
        value: Any = self.content
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value


def load_jobs(folder: Path) -> list[Job]:
    """Return the job of an output folder, or every job below a sweep's, in their order.

    A job whose file is damaged counts as failed.

    Raises
    ------
    TrimtabError
        If there is none.
    """
    found = {path.parent for name in RESULTS for path in folder.glob(f"**/{name}")}
    if not found:
        raise TrimtabError(f"{folder} holds no {' and no '.join(RESULTS)}")
    folders = [folder] if folder in found else sorted(found, key=_order)
    contents = {path: _content(path) for path in folders}
    labels = _labels(contents, folder)
    return [Job(path, content, labels[path]) for path, content in contents.items()]


def _labels(contents: dict[Path, dict[str, Any]], root: Path) -> dict[Path, str]:
    """Return the label of each job, with the overrides that not all have; no two are the same."""
    given = {
        path: [str(one).lstrip("+") for one in content["overrides"]]
        for path, content in contents.items()
        if "overrides" in content
    }
    common = set.intersection(*map(set, given.values())) if given else set()
    labels = {}
    for path, content in contents.items():
        told = [one for one in given.get(path, ()) if not one.startswith(("methods=", "methods."))]
        own = dict.fromkeys(one for one in told if one not in common)
        labels[path] = " ".join([str(content["label"]), *own])
    times = Counter(labels.values())
    return {
        path: label if times[label] == 1 else f"{label} ({path.relative_to(root)})"
        for path, label in labels.items()
    }


def _content(folder: Path) -> dict[str, Any]:
    result = folder / "result.json"
    path = result if result.exists() else folder / "error.json"
    with suppress(ValueError):
        content = json.loads(path.read_text("utf-8"))
        if isinstance(content, dict) and {"status", "label"} <= content.keys():
            return content
    message = f"{path.name} is damaged: truncated or edited since it was written; run the job again"
    return {"status": "error", "label": folder.name, "type": "Damaged", "message": message}


def _order(folder: Path) -> tuple[int, str]:
    return (int(folder.name) if folder.name.isdigit() else -1, str(folder))
