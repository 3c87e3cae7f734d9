"""The table at the end: what was measured, what was found, and what it should reach."""

from __future__ import annotations

from collections.abc import Sequence

from result_tables import table

from gpu_parts.record import Record
from gpu_parts.unit import Row, Unit

COLUMNS = ("what", "measured", "aim")


def summary(units: Sequence[Unit], record: Record, left: Sequence[Unit]) -> str:
    """Return the table in Markdown, and after it what failed, was skipped, or is left."""
    rows: list[Row] = []
    notes: list[str] = []
    skipped: dict[str, list[str]] = {}
    for unit in units:
        result, error = record.result(unit.name), record.error(unit.name)
        if error is not None:
            notes.append(f"- failed: {unit.name}: {error}")
        elif result is None:
            continue
        elif "skipped" in result:
            skipped.setdefault(result["skipped"], []).append(unit.name)
        else:
            rows += unit.rows(result)
            failed = result.get("failed", {})
            notes += [f"- failed: {unit.name}, {name}: {why}" for name, why in failed.items()]
    notes += [f"- skipped, as {why}: {'; '.join(names)}" for why, names in skipped.items()]
    if left:
        notes.append(f"- left: {'; '.join(unit.name for unit in left)}")
    made = [table(COLUMNS, rows)] if rows else []
    return "\n\n".join([*made, *(["\n".join(notes)] if notes else [])])


def has_failures(units: Sequence[Unit], record: Record) -> bool:
    """Return whether anything failed, of a unit or as a whole."""
    return any(
        record.error(unit.name) is not None or (record.result(unit.name) or {}).get("failed")
        for unit in units
    )
