"""Where the time of a text goes on the engine, as a table."""

from __future__ import annotations

from collections.abc import Sequence

from trimtab.evaluation.work import TextTime
from trimtab.report.job import Job
from trimtab.report.table import Cell, Table, stack_cell

KINDS = tuple(TextTime.__annotations__)
NOTE = (
    "Milliseconds of a text on the engine, in the mean of those timed, until its first token "
    "(`prefill`) and, in the decode steps after it, by kind of work in the mean over threads. "
    "`inputs` are norms and selections; activations count as `linear layers`; `waiting` is for "
    "other threads; `outside` is what surrounds the steps in C++, drafting among it. Together they "
    "are `in all`."
)


def time_table(rows: Sequence[Job]) -> Table | None:
    """Return one row a job whose decode steps told their time; None where none did."""
    lines = []
    for row in rows:
        if parts := row.get("engine.ms_per_text"):
            amounts = [parts[kind] for kind in KINDS]
            told = (Cell(f"{amount:,.1f}", amount) for amount in (*amounts, sum(amounts)))
            lines.append((stack_cell(row.label), *told))
    heads = ("stack", *(kind.replace("_", " ") for kind in KINDS), "in all")
    return Table("Where the time of a text goes", heads, tuple(lines), note=NOTE) if lines else None
