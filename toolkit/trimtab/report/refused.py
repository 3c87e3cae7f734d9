"""Jobs that failed by a setting, which has to be corrected: to run them as they are is no use."""

from __future__ import annotations

import re
from collections.abc import Sequence

from trimtab.errors import ConfigError, MisfitError
from trimtab.report.figures import code, named
from trimtab.report.job import Job

KINDS = ConfigError.__name__, MisfitError.__name__


def is_refused(row: Job) -> bool:
    """Return whether a job failed by what was typed, and not by what the machine did."""
    return not row.ok and row.content.get("type") in KINDS


def corrections(rows: Sequence[Job]) -> list[str]:
    """Return what is to be corrected, a sentence for each setting."""
    found: dict[str, list[str]] = {}
    for row in filter(is_refused, rows):
        setting = re.match(r"[\w.]+(?==)", str(row.content.get("message")))
        what = code(setting[0]) if setting else "what was refused"
        found.setdefault(what, []).append(code(row.label))
    return [f"Correct {what} and run {named(labels)} again" for what, labels in found.items()]
