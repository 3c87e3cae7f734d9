"""Jobs that failed by a setting or lack an artifact: to run them as they are is no use."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields

from trimtab.config import CalibrateConfig
from trimtab.errors import ConfigError, MisfitError, MissingArtifactError
from trimtab.registry import stack_members
from trimtab.report.figures import code, named
from trimtab.report.job import Job
from trimtab.report.labels import typed
from trimtab.retyped import options, retyped

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


def calibrations(rows: Sequence[Job]) -> list[str]:
    """Return how to make the artifacts that jobs lack, as on_missing=error asks: a step for each.

    What an experiment, or another configuration than ours, sets calibrate.py does not read: there
    the job itself makes them.
    """
    found: dict[str, list[str]] = {}
    for row in rows:
        if row.content.get("type") == MissingArtifactError.__name__ and typed(row):
            found.setdefault(_calibration(row), []).append(code(row.label))
    return [
        f"Make the artifacts of {named(labels)}: {code(told)}" for told, labels in found.items()
    ]


def _calibration(row: Job) -> str:
    given = [one.lstrip("+") for one in row.content["overrides"]]
    last = {one.partition("=")[0]: one for one in given}
    if "experiment" in last or any(one.startswith("--config-name") for one in options(row.content)):
        last["on_missing"] = "on_missing=calibrate"
        return retyped(row.content, *last.values())
    members = stack_members(last.get("methods", "").partition("=")[2])
    known = {one.name for one in fields(CalibrateConfig)}
    kept = [
        one for key, one in last.items()
        if key.partition(".")[0] in known
        and (not key.startswith("methods.") or key.split(".")[1] in members)
    ]  # fmt: skip
    return retyped(row.content, *kept, script="calibrate.py")
