"""Tables of a report, to be written as Markdown and as HTML."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from trimtab.evaluation.display import Column, Series
from trimtab.report.columns import BESIDE, COLUMNS, COMPRESSION, FIRST, MEMORY, SERVERS
from trimtab.report.figures import code, middle, span, written
from trimtab.report.job import Job
from trimtab.report.labels import commit, machine
from trimtab.report.marks import NOT_RANKED, explained, mark, marked
from trimtab.report.verdict import verdict


@dataclass(frozen=True)
class Cell:
    """What is written, in Markdown, and what rows are sorted by.

    Attributes
    ----------
    span : int
        Columns that it takes.
    """

    text: str
    sort: float | str | None = None
    span: int = 1


@dataclass(frozen=True)
class Table:
    """A table with a legend.

    Attributes
    ----------
    title : str
    heads : tuple of str
    rows : tuple of tuples of Cell
    legend : tuple of (str, str)
        What heads mean, where they do not say it.
    note : str
    """

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    legend: tuple[tuple[str, str], ...] = ()
    note: str = ""

    @property
    def words(self) -> tuple[bool, ...]:
        """Of each column, whether it holds words, and not numbers alone."""
        whole = [row for row in self.rows if len(row) == len(self.heads)]
        columns = zip(*whole, strict=True) if whole else ((),) * len(self.heads)
        return tuple(any(isinstance(one.sort, str) for one in column) for column in columns)


PROMPT_CUT = (
    "Bits per byte of the text that follows a prompt, in base tokens: after the whole prompt "
    "under the unmodified model; after the prompt in the stack's tokens; and, under the "
    "unmodified model again, after the prompt with its oldest tokens cut until it is as short. "
    "A stack that does not beat the cut is no way to shorten prompts."
)
AMOUNTS = (
    "What the unmodified model took, measured beside the stack, → what the stack took. Tokens are "
    "those of the timed texts in the first `speed.repeats` rounds of the scenario latency: "
    "texts run one at a time."
)
TAKEN = (
    "What the unmodified model holds → what the stack holds: weights, the engine's int8 copy of "
    "the head, and the KV cache, of one text and of the most requests together, beside padded "
    "batches. All of it was counted; activations and the libraries' own memory are not in it."
)
SCENARIOS = (
    "Times, rates and the speedup are of the scenario latency, one text at a time; the serving "
    "speedup is of the scenario serving, requests together."
)
SERVING = (
    "Scenario serving: requests that arrive together, under one budget{size} for the KV cache. "
    "`candidate` is the stack; the others are transformers' own: `padded` generate, the same once "
    "more as `control`, whose difference is noise, a `static` cache, `continuous` batching."
)


def cell(value: Any, form: str = "", scale: float = 1) -> Cell:
    """Return a cell of what a field holds; it sorts by the number, or by the estimate."""
    text = written(value, form, scale)
    return Cell(text if len(text) < 2 else escaped(text), middle(value))


def stack_cell(label: str, mark: str = "") -> Cell:
    """Return the cell that names a stack, with the mark of its figures."""
    return Cell(escaped(marked(code(label), mark)), label)


def escaped(text: str) -> str:
    """Return a text that ends no cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


def main_table(rows: Sequence[Job]) -> Table:
    """Return one row a job, failed ones as failed."""
    shown = [one for one in COLUMNS if one.always or any(row.get(one.field) is not None
                                                         for row in rows)]  # fmt: skip
    told = _differing(rows)
    first = sum(one.field == FIRST for one in shown)  # columns before the verdict
    titles = [one.title for one in shown]
    names = [name for name, _ in told]
    heads = ("stack", *titles[:first], "verdict", *titles[first:], *names)
    lines: list[tuple[Cell, ...]] = []
    notes = {SCENARIOS: None} if any(row.get(FIRST) is not None for row in rows) else {}
    for row in rows:
        label = stack_cell(row.label)
        if not row.ok:
            message = f"**failed**: {escaped(str(row.content.get('message')))}"
            lines.append((label, Cell(message, span=len(heads) - 1)))
            continue
        figures = [cell(row.get(one.field), one.form, one.scale) for one in shown]
        facts = (cell(fact(row)) for _, fact in told)
        found = verdict(row, rows) if row.methods else f"control: {verdict(row, rows)}"
        if mark(FIRST, row, rows) == NOT_RANKED:
            found = f"{found}, {NOT_RANKED}"
            notes[explained([NOT_RANKED])] = None
        lines.append((label, *figures[:first], cell(found), *figures[first:], *facts))
    legend = tuple((one.title, one.meaning) for one in shown if one.meaning)
    return Table("All figures", heads, tuple(lines), legend, " ".join(notes))


def amount(job: Job, series: Series) -> str:
    """Return a job's figure, after that of the unmodified model where there is one."""
    value = written(job.get(series.field), series.form, series.scale)
    other = job.get(series.beside) if series.beside else None
    return value if other is None else f"{written(other, series.form, series.scale)} → {value}"


def beside_table(rows: Sequence[Job]) -> Table | None:
    """Return the amounts of every row beside the unmodified model's, or None without any."""
    having = [row for row in rows if row.ok]
    marks = [mark(FIRST, row, rows) for row in having]
    note = f"{AMOUNTS} {explained(marks)}".rstrip()
    return _amounts("Beside the unmodified model", BESIDE, having, note, marks)


def memory_table(rows: Sequence[Job]) -> Table | None:
    """Return what every row takes of memory beside the unmodified model, or None without any."""
    having = [row for row in rows if row.get("derived.one_text_bytes")
              or row.get("derived.serving_bytes")]  # fmt: skip
    return _amounts("Memory, MB", MEMORY, having, TAKEN, [""] * len(having))


def _amounts(
    title: str, columns: Iterable[Series], rows: Sequence[Job], note: str, marks: Sequence[str]
) -> Table | None:
    shown = [one for one in columns if any(row.get(one.field) is not None for row in rows)]
    lines = []
    for row, own in zip(rows, marks, strict=True):
        amounts = (Cell(escaped(amount(row, one)), middle(row.get(one.field))) for one in shown)
        lines.append((stack_cell(row.label, own), *amounts))
    heads = ("stack", *(one.title for one in shown))
    return Table(title, heads, tuple(lines), note=note) if shown else None


def _differing(rows: Sequence[Job]) -> list[tuple[str, Callable[[Job], str | None]]]:
    facts: tuple[tuple[str, Callable[[Job], str | None]], ...] = (
        ("machine", machine), ("commit", commit),
    )  # fmt: skip
    return [pair for pair in facts if len({pair[1](row) for row in rows if row.ok}) > 1]


def compression_table(rows: Sequence[Job]) -> Table | None:
    """Return one row a job whose stack compresses prompts; None where none does."""
    having = [row for row in rows if row.get("quality.compression") is not None]
    lines = [_cells(row.label, row.get, COMPRESSION) for row in having]
    heads = ("stack", *(one.title for one in COMPRESSION))
    return Table("Shorter prompts", heads, tuple(lines), note=PROMPT_CUT) if having else None


def serving_table(rows: Sequence[Job]) -> Table | None:
    """Return one row a server and number of requests; None where serving was not measured."""
    lines = [
        _cells(row.label, server.get, SERVERS)
        for row in rows
        for server in row.get("serving.servers") or ()
    ]
    heads = ("stack", *(one.title for one in SERVERS))
    budgets = [one for row in rows if (one := row.get("serving.kv_budget_bytes")) is not None]
    size = f" of {span((1e-6 * one for one in budgets), ',.1f')} MB" if budgets else ""
    note = SERVING.format(size=size)
    return Table("Serving", heads, tuple(lines), note=note) if lines else None


def _cells(label: str, get: Callable[[str], Any], columns: Iterable[Column]) -> tuple[Cell, ...]:
    return (stack_cell(label), *(cell(get(one.field), one.form, one.scale) for one in columns))


def markdown(table: Table) -> str:
    """Return a table as Markdown."""
    lines = [_line(table.heads), "|---" * len(table.heads) + "|"]
    for row in table.rows:
        lines.append(_line(text for one in row for text in (one.text, *[""] * (one.span - 1))))
    return "\n".join(lines)


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
