"""What calibration chose of the settings that were left to it, and from what."""

from __future__ import annotations

from typing import Any

from trimtab.larosa.auto import told
from trimtab.report.figures import code, interval
from trimtab.report.job import Job


def chosen(job: Job) -> str:
    """Return the candidates, the chosen one first; empty where nothing was left to choose."""
    rows: list[dict[str, Any]] = job.get("sparsity.candidates") or []
    if not any(row["chosen"] for row in rows):
        return ""
    first, *others = sorted(rows, key=lambda row: not row["chosen"])
    return f"{_figures(first)}; tried too: {'; '.join(map(_figures, others))}"


def _figures(row: dict[str, Any]) -> str:
    return f"{code(told(row))} {row['reason'] or interval(row['excess'], '+.4f')}"
