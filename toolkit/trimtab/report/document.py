"""Everything a report says, before it is written as Markdown and as HTML.

Texts are Markdown without blocks: `code` and **bold** alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trimtab.report.advice import added, next_steps, unmeasured
from trimtab.report.attribution import Attribution
from trimtab.report.balance import Balance, balance, control_told
from trimtab.report.choice import Choice, choices
from trimtab.report.figures import code, interval, listed
from trimtab.report.job import Job
from trimtab.report.labels import commit, machine
from trimtab.report.plots.panel import Plot
from trimtab.report.table import (
    Table, attribution_table, compression_table, main_table, serving_table,
)  # fmt: skip
from trimtab.report.verdict import said, setting, verdict


@dataclass(frozen=True)
class Stack:
    """One stack in words."""

    label: str
    verdict: str
    balance: Balance
    ran: str


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
    """

    name: str
    advice: tuple[tuple[str, str, str], ...]
    stacks: tuple[Stack, ...]
    controls: tuple[str, ...]


@dataclass(frozen=True)
class Document:
    """A report."""

    title: str
    counted: str
    warnings: tuple[str, ...]
    failures: tuple[tuple[str, str], ...]
    settings: tuple[Setting, ...]
    unmeasured: tuple[str, ...]
    steps: tuple[str, ...]
    tables: tuple[Table, ...]
    attribution: Table | None
    added: tuple[str, ...]
    plots: tuple[Plot, ...]
    machines: tuple[str, ...]
    reading: str


READING = (
    "Every row is measured against the unmodified model under transformers' own `generate`. "
    "Brackets are 95 % intervals, of rows that are means over seeds the range of the seeds. "
    "`faster` and `slower` are said only where the interval is clear of 1 and of the interval of "
    "the unmodified model against itself. Stacks with `vattention` or drafts run on Trimtab's own "
    "engine: what the engine alone gives is the row `vattention`. docs/reports.md says how to read "
    "a report, and docs/results.md explains every field."
)


def document(
    rows: Sequence[Job], attributed: Sequence[Attribution], plots: Sequence[Plot]
) -> Document:
    """Return what a report says of its rows."""
    measured = [row for row in rows if row.ok]
    failed = [row for row in rows if not row.ok]
    groups = groups_of(measured)
    tables = (main_table(rows), serving_table(measured), compression_table(measured))
    chosen = [choice for group in groups for choice in choices(group)]
    return Document(
        title=" and ".join(dict.fromkeys(str(row.get("model.name")) for row in measured)) or "failed",
        counted=_counted(rows, failed),
        warnings=tuple(dict.fromkeys(_warnings(measured))),
        failures=tuple((row.label, str(row.content.get("message"))) for row in failed),
        settings=tuple(_setting(group) for group in groups),
        unmeasured=tuple(unmeasured(rows)),
        steps=tuple(next_steps(rows, chosen)),
        tables=tuple(table for table in tables if table is not None),
        attribution=attribution_table(attributed),
        added=tuple(added(rows)),
        plots=tuple(plots),
        machines=tuple(dict.fromkeys(map(facts, measured))),
        reading=READING,
    )


def groups_of(rows: Sequence[Job]) -> list[list[Job]]:
    """Return the rows that compare with each other: one model, one text, one machine."""
    groups: dict[Any, list[Job]] = {}
    for row in rows:
        groups.setdefault(setting(row), []).append(row)
    return list(groups.values())


def _counted(rows: Sequence[Job], failed: Sequence[Job]) -> str:
    jobs = sum(len(row.seeds) or 1 for row in rows)
    text = f"{jobs} {'job' if jobs == 1 else 'jobs'}"
    return f"{text}, {len(failed)} failed" if failed else text


def _warnings(rows: Sequence[Job]) -> list[str]:
    found = []
    for row in rows:
        found += [f"{code(row.label)}: {text}" for text in row.get("warnings") or ()]
        load = row.get("environment.load")
        if load and load["busy"] and not row.get("warnings"):
            found.append(f"{code(row.label)}: the machine was busy: {load['reason']}")
        if not row.get("speed.paired"):
            found.append(f"{code(row.label)}: unpaired, so that a slow minute counts as a slow stack")
    return found + [_set_aside(row) for row in rows if row.get("generation.set_aside")]


def _set_aside(row: Job) -> str:
    asked: dict[str, Any] = row.get("generation.set_aside")
    settings = ", ".join(f"`{name}={json.dumps(value)}`" for name, value in asked.items())
    return (
        f"The generation config of {row.get('model.name')} asks for {settings}: set aside for both "
        "models, which generated by the settings of the job alone."
    )


def _setting(group: Sequence[Job]) -> Setting:
    first = group[0]
    name = f"{first.get('model.name')} on {first.get('corpus.name')}, {machine(first)}"
    stacks = tuple(
        Stack(row.label, said(verdict(row, group)), balance(row, group), _ran(row))
        for row in group
        if row.methods
    )
    advice = tuple(_advice(choice, group) for choice in choices(group)) if stacks else ()
    controls = tuple(control_told(row) for row in group if not row.methods)
    return Setting(name, advice, stacks, controls)


def _advice(choice: Choice, group: Sequence[Job]) -> tuple[str, str, str]:
    best = choice.best
    if best is None:
        why = "" if any(row.get("quality") for row in group) else ": quality was not measured"
        told = f"no stack{why}: stay with the unmodified model"
        if why:
            told = "no stack can be named, as quality was not measured"
        return choice.rule.wish, told, choice.rule.how
    found = balance(best, group)
    told = f"**{code(best.label)}**: {interval(best.get('speed.speedup'), '.2f')} times the speed; "
    told += f"it costs: {'; '.join(found.cost)}" if found.cost else "nothing measured got worse"
    if choice.equal:
        told += f". Not told apart from it: {listed([code(row.label) for row in choice.equal])}"
    return choice.rule.wish, told, choice.rule.how


def _ran(row: Job) -> str:
    step = row.get("engine.decode_step")
    return f"kernel: {row.content['kernel']}" + (f"; decode steps: {step}" if step else "")


def facts(row: Job) -> str:
    """Return what was measured on what, in one line."""
    packages = row.get("environment.packages")
    return (
        f"{row.get('model.name')} ({row.get('model.dtype')}) on {row.get('corpus.name')}, "
        f"measured on {machine(row)}, {_pages(row)}; torch {packages['torch']}, transformers "
        f"{packages['transformers']}, commit {commit(row)}"
    )


def _pages(row: Job) -> str:
    """Return where the weights of both models lay, by what was counted."""
    held: dict[str, int] = row.get("memory.parameter_bytes")
    weights = sum(held.values()) if row.get("speed.paired") else max(held.values())
    share = row.get("memory.huge_page_bytes") / weights
    if share > 0.8:
        return "weights in huge pages"
    return "weights in ordinary pages" if share < 0.2 else "weights partly in huge pages"
