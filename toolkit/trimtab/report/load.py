"""Read what the jobs of a sweep left on disk."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.errors import TrimtabError


@dataclass(frozen=True)
class Job:
    """One job: its result, or the error it ended with.

    Attributes
    ----------
    folder : Path
    content : dict
        Of result.json or error.json.
    """

    folder: Path
    content: dict[str, Any]

    @property
    def ok(self) -> bool:
        return bool(self.content["status"] == "ok")

    @property
    def label(self) -> str:
        return str(self.content["label"])

    def get(self, name: str) -> Any:
        """Return the field with this dotted name, or None where it was not measured."""
        value: Any = self.content
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value


def load_jobs(folder: Path) -> list[Job]:
    """Return the jobs of an output folder, or of every job below a sweep's, in their order.

    A job whose file is damaged counts as failed.

    Raises
    ------
    TrimtabError
        If there is none.
    """
    folders = sorted({path.parent for name in ("result.json", "error.json")
                      for path in folder.glob(f"**/{name}")}, key=_order)  # fmt: skip
    if not folders:
        raise TrimtabError(f"{folder} holds no result.json and no error.json")
    return [Job(path, _content(path)) for path in folders]


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
