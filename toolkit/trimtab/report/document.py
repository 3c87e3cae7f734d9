"""Everything a report says, before it is written as Markdown and as HTML.

Texts are Markdown without blocks: `code` and **bold** alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trimtab.report.advice import added, joining, next_steps, unmeasured
from trimtab.report.attribution import Attribution
from trimtab.report.attribution_table import attribution_table
from trimtab.report.balance import Balance, balance, control_told
from trimtab.report.choice import choices
from trimtab.report.chosen import chosen
from trimtab.report.claims import claims_table
from trimtab.report.extent import extent
from trimtab.report.figures import code, listed
from trimtab.report.job import Job
from trimtab.report.labels import shared
from trimtab.report.notices import facts, warnings
from trimtab.report.plots.panel import Plot
from trimtab.report.published import published_table
from trimtab.report.recommended import recommended
from trimtab.report.table import (
    Table,
    beside_table,
    compression_table,
    main_table,
    memory_table,
    serving_table,
)
from trimtab.report.time_table import time_table
from trimtab.report.verdict import groups_of, names_of, said, verdict


@dataclass(frozen=True)
class Stack:
    """One stack in words."""

    label: str
    methods: str
    verdict: str
    balance: Balance
    ran: str
    chosen: str


@dataclass(frozen=True)
class Setting:
    """Rows of one model, text and machine, the only ones whose figures compare.

    Attributes
    ----------
    name : str
    advice : tuple of (str, str, str)
        A wish, the stack to use for it and what it gains and costs, and how it was found.
    stacks : tuple of Stack
    controls : tuple of str
    extent : str
        How much was measured.
    """

    name: str
    advice: tuple[tuple[str, str, str], ...]
    stacks: tuple[Stack, ...]
    controls: tuple[str, ...]
    extent: str


@dataclass(frozen=True)
class Document:
    """A report."""

    title: str
    counted: str
    shared: str
    left_out: tuple[str, ...]
    warnings: tuple[str, ...]
    failures: tuple[tuple[str, str], ...]
    settings: tuple[Setting, ...]
    unmeasured: tuple[str, ...]
    steps: tuple[str, ...]
    joining: str
    tables: tuple[Table, ...]
    attribution: Table | None
    added: tuple[str, ...]
    plots: tuple[Plot, ...]
    drawn: bool
    machines: tuple[str, ...]
    reading: str

    @property
    def stacks(self) -> tuple[Stack, ...]:
        return tuple(stack for setting in self.settings for stack in setting.stacks)


READING = (
    "Every row is measured against the unmodified model under transformers' own `generate`. "
    "While they are timed, all write the same text: what follows the prompt in a held-out "
    "document, whatever the model would choose. A draft is right where it is that text. "
    "Brackets are 95 % intervals; those of a mean over seeds span the intervals of all seeds. "
    "`faster` and `slower` are said only where the interval is clear of 1 and of that of the job's "
    "own control, the unmodified model timed once more beside it, on the same weights. The control "
    "covers the noise of timing, the order and warming up, not where weights lie in memory: a "
    "stack has a copy of its own, and what two copies differ by is the row `baseline`. The speedup "
    "is what is typical of pairs, and rates and times per byte are what is typical of one "
    "generation: a few that were disturbed move neither. Stacks with `vattention` or drafts run on "
    "Trimtab's own engine: what the engine alone gives is the row `vattention`. docs/reports.md "
    "says how to read a report, and docs/results.md explains every field."
)

RANDOM = (
    "No stack is recommended: the weights are random, so that quality is not measured, and what "
    "drafts or tokens gain on their texts says nothing of a trained model."
)


def document(
    rows: Sequence[Job],
    attributed: Sequence[Attribution],
    plots: Sequence[Plot],
    more: int = 0,
    left_out: Sequence[str] = (),
) -> Document:
    """Return what a report says of its rows.

    Parameters
    ----------
    more : int
        Jobs of the sweep that are still to come.
    left_out : sequence of str
        A line for each result that is not among the rows.
    """
    measured = [row for row in rows if row.ok]
    failed = [row for row in rows if not row.ok]
    groups = groups_of(measured)
    tables = (
        main_table(rows), beside_table(rows), memory_table(measured), time_table(measured),
        serving_table(measured),
        compression_table(measured), published_table(rows), claims_table(rows),
    )  # fmt: skip
    advised = [choice for group in groups for choice in choices(group)]
    return Document(
        title=" and ".join(dict.fromkeys(map(_model, measured))) or "no job succeeded",
        counted=_counted(rows, failed, more),
        shared=", ".join(code(one.removeprefix("methods.")) for one in shared(rows)),
        drawn=not more,
        left_out=tuple(left_out),
        warnings=tuple(dict.fromkeys(warnings(measured))),
        failures=tuple((row.label, str(row.content.get("message"))) for row in failed),
        settings=tuple(map(_setting, groups, names_of(groups))),
        unmeasured=tuple(unmeasured(rows)),
        steps=tuple(next_steps(rows, advised)),
        joining=joining(rows),
        tables=tuple(table for table in tables if table is not None),
        attribution=attribution_table(attributed),
        added=tuple(added(rows)),
        plots=tuple(plots),
        machines=tuple(dict.fromkeys(map(facts, measured))),
        reading=READING,
    )


def _counted(rows: Sequence[Job], failed: Sequence[Job], more: int) -> str:
    jobs = sum(len(row.seeds) or 1 for row in rows)
    text = f"{jobs} {'job' if jobs == 1 else 'jobs'}"
    text = f"{text}, {len(failed)} failed" if failed else text
    return f"{text}; {more} more to come, and then the plots" if more else text


def _setting(group: Sequence[Job], name: str) -> Setting:
    stacks = tuple(
        Stack(
            row.label,
            listed(list(row.methods)),
            said(verdict(row, group)),
            balance(row, group),
            _ran(row),
            chosen(row),
        )
        for row in group
        if row.methods
    )
    advice = tuple(recommended(group)) if stacks else ()
    controls = tuple(control_told(row) for row in group if not row.methods)
    if any(row.random_weights for row in group):
        controls = (RANDOM, *controls)
    return Setting(name, advice, stacks, controls, extent(group))


def _model(row: Job) -> str:
    return str(row.get("model.name")) + " (random weights)" * row.random_weights


def _ran(row: Job) -> str:
    more = {
        "prompts": row.get("sparsity.prompt_kernel"),
        "decode steps": row.get("engine.decode_step"),
        "KV cache": row.get("engine.kv_layout"),
    }
    told = [f"{what}: {kernel}" for what, kernel in more.items() if kernel]
    return "; ".join([str(row.content["kernel"]), *told])
