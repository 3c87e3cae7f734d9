"""Offline runs, read back with wandb's own reader."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Run:
    """One offline run: what its summary page says, and every record of its file."""

    page: dict[str, Any]
    records: list[dict[str, Any]]

    @property
    def summary(self) -> dict[str, Any]:
        return self.page["summary"]

    @property
    def config(self) -> dict[str, Any]:
        return self.page["config"]

    @property
    def opened(self) -> dict[str, Any]:
        """What it was opened with: display_name, run_group, job_type, ..."""
        (record,) = self.of("run")
        return record

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [record[kind] for record in self.records if record["type"] == kind]

    def table(self, name: str) -> list[dict[str, Any]]:
        """Return the rows of a table that is kept beside the run's file."""
        path = Path(self.page["file"]).parent / "files" / self.summary[name]["path"]
        content = json.loads(path.read_text())
        return [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]

    def calibrations(self) -> list[dict[str, Any]]:
        return [one for one in self.of("artifact") if one["type"] == "calibration"]


def runs_in(folder: Path) -> list[Run]:
    """Return the offline runs below `folder`, the oldest first."""
    runs = [_read(path) for path in folder.glob("wandb/offline-run-*")]
    return sorted(runs, key=lambda run: run.page["start_time"])


def _read(path: Path) -> Run:
    page = json.loads(_inspect(path, "--summary"))
    return Run(page, [json.loads(line) for line in _inspect(path).splitlines() if line.strip()])


def _inspect(path: Path, *options: str) -> str:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", *options, str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
