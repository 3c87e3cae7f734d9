"""Timed figures that do not compare with those of other rows: how they are marked, and why."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from trimtab.report.job import Job
from trimtab.report.notices import moved
from trimtab.report.verdict import NOISY, first_token, serves, serves_continuously, verdict

NOT_RANKED, TOO_NOISY = "not ranked", "too noisy"
MEANINGS = {
    NOT_RANKED: "the machine was not the same while this row was timed, as a warning says; its "
    "times and ratios do not compare with the others'",
    TOO_NOISY: "noise hides whether this row is faster or slower: its interval is wide, or that of "
    "its control, the unmodified model against itself, does not hold 1",
}
TIMED = ("speed.", "serving.", "derived.time")


def judged(field: str, row: Job, rows: Sequence[Job]) -> str:
    """Return the verdict that a timed figure of a row goes by."""
    if "prefill" in field:
        return first_token(row)
    if field.startswith("serving."):
        return serves_continuously(row) if "continuous" in field else serves(row)
    return verdict(row, rows)


def mark(field: str, row: Job, rows: Sequence[Job]) -> str:
    """Return `NOT_RANKED` or `TOO_NOISY`; empty of what was counted, and of what compares."""
    if not field.startswith(TIMED):
        return ""
    if moved(row, rows):
        return NOT_RANKED
    return TOO_NOISY if row.methods and judged(field, row, rows) == NOISY else ""


def marked(label: str, mark: str) -> str:
    """Return a label, followed by its mark."""
    return f"{label} ({mark})" if mark else label


def explained(marks: Iterable[str]) -> str:
    """Return a sentence for each mark that is among these, for a legend."""
    found = set(", ".join(marks).split(", "))
    told = (f"{name.capitalize()}: {why}." for name, why in MEANINGS.items() if name in found)
    return " ".join(told)
