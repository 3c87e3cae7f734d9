"""One row of a report: what a job left, or several jobs that differ in their seed alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.evaluation.result import RANDOM_WEIGHTS


@dataclass(frozen=True)
class Job:
    """One job, or the mean of several that differ in their seed: a result, or an error.

    Attributes
    ----------
    folder : Path
        Where result.json or error.json is; of several jobs, the first one's.
    content : dict
        Of that file; of a result with `derived` figures added.
    label : str
        What tells it from the others of its report.
    root : Path
        The folder that the report was asked for.
    seeds : tuple of int
        Those of the jobs that it is the mean of; empty for one job.
    """

    folder: Path
    content: dict[str, Any]
    label: str
    root: Path
    seeds: tuple[int, ...] = ()

    @property
    def ok(self) -> bool:
        return bool(self.content["status"] == "ok")

    @property
    def methods(self) -> tuple[str, ...]:
        """The stack in the order it was applied; empty for the baseline and for a failure."""
        return tuple(self.content.get("methods") or ())

    @property
    def random_weights(self) -> bool:
        """Whether its model has random weights, so that no quality was measured."""
        reasons: dict[str, str] = self.content.get("reasons", {})
        return any(why.startswith(RANDOM_WEIGHTS) for why in reasons.values())

    def get(self, name: str) -> Any:
        """Return the field with this dotted name, or None where it was not measured."""
        value: Any = self.content
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value

    def reason(self, name: str) -> str | None:
        """Return why this field, or the section that it is in, is null."""
        reasons: dict[str, str] = self.content.get("reasons", {})
        while name not in reasons and "." in name:
            name = name.rpartition(".")[0]
        return reasons.get(name)
