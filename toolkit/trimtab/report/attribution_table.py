"""What methods change alone, in a stack, and together, as a table."""

from __future__ import annotations

from collections.abc import Sequence

from trimtab.report.attribution import Attribution
from trimtab.report.marks import explained, marked
from trimtab.report.table import Cell, Table, cell, stack_cell

EFFECTS = (
    "`alone`: the method by itself over the unmodified model. `in the stack`: the whole stack over "
    "the stack without it. `interaction`: what the whole stack has beyond the product of what its "
    "methods do alone (× 1: nothing), of bits per byte beyond their sum. The interval of `alone` "
    "is the job's own, of bits per byte by resampling windows. The others are Student's, of bits "
    "per byte over the windows that all jobs scored, in pairs: of few windows they are far wider, "
    "and safer. A dash: no interval, because it was counted or there are no pairs of samples."
)


def attribution_table(found: Sequence[Attribution]) -> Table | None:
    """Return one row an effect: what methods change alone, in a stack, and together."""
    lines = [
        (
            stack_cell(one.whole.label),
            cell(one.metric.name),
            cell(
                marked(
                    (effect.method and f"{effect.method}, {effect.kind}") or effect.kind,
                    effect.mark,
                )
            ),
            Cell(one.metric.told(effect.change), effect.change),
            cell(
                None
                if effect.low is None or effect.high is None
                else f"{one.metric.told(effect.low)} to {one.metric.told(effect.high)}"
            ),
        )
        for one in found
        for effect in one.effects
    ]
    heads = ("stack", "figure", "effect", "change", "95 % interval")
    marks = explained(effect.mark for one in found for effect in one.effects)
    note = f"{EFFECTS} {marks}".rstrip()
    return Table("Attribution", heads, tuple(lines), note=note) if lines else None
