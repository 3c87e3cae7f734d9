"""What papers say of their methods, beside the same quantity where a sweep measured it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from trimtab.report.figures import code, middle, written
from trimtab.report.job import Job
from trimtab.report.marks import explained, mark, marked
from trimtab.report.table import Cell, Table, cell, stack_cell

TITLE = "What was published, and what was measured here"
NOTE = (
    "Published: the abstract's figure. Measured: every stack that holds the method and the fewest "
    "others, whose effects are in its figures. Models, machines and text are not the same, so that "
    "a difference does not refute a paper. No paper has a figure of several of these methods "
    "together."
)


@dataclass(frozen=True)
class Published:
    """A figure of a paper's abstract.

    Attributes
    ----------
    method : str
    source : str
        The paper.
    setting : str
        What the figure is of.
    figure : str
    quantity : str
        What it is a figure of, and what stands for that here, where it is another.
    field : str
        Dotted name of the same quantity in a job.
    form : str
        Format specification of the field.
    reason : str
        Dotted name of the field whose reason says why it is null.
    """

    method: str
    source: str
    setting: str
    figure: str
    quantity: str
    field: str
    form: str
    reason: str


@dataclass(frozen=True)
class Comparison:
    """A published figure beside one row's.

    Attributes
    ----------
    published : Published
    row : Job
    mark : str
        Why what was measured is not to be relied on, see `trimtab.report.marks`; or empty.
    """

    published: Published
    row: Job
    mark: str

    @property
    def measured(self) -> Any:
        """A number, an interval, or None where it was not measured."""
        return self.row.get(self.published.field)

    @property
    def reason(self) -> str | None:
        """Why it was not measured; None where it was."""
        if self.measured is not None:
            return None
        return self.row.reason(self.published.reason) or "not in the result"


LAROSA = "larosa", "arXiv 2507.01299", "LLaMA2-7B, 40 % of activations dropped"
ADAPTIVOCAB = "adaptivocab", "arXiv 2503.19693", "two 7B models on three domains, fine-tuned"
VATTENTION = (
    "vattention", "arXiv 2405.04437", "against FlashAttention's and FlashInfer's paged kernels"
)  # fmt: skip
PUBLISHED = (
    Published(
        *LAROSA, "1.30 times", "speedup", "speed.speedup", ".2f", "speed.speedup"
    ),
    Published(
        *LAROSA, "+0.17", "perplexity beyond the dense model's", "derived.perplexity_gap", "+.2f",
        "quality.perplexity",
    ),
    Published(
        *ADAPTIVOCAB, "over 25 %", "tokens saved", "tokens.saving", ".1%", "tokens.saving"
    ),
    Published(
        *ADAPTIVOCAB, "performance not compromised", "loss of quality; here, more bits per byte",
        "derived.bits_increase", "+.1%", "quality.bits_per_byte",
    ),
    Published(
        *VATTENTION, "up to 1.23 times",
        "serving throughput over a paged cache; here, over transformers' continuous batching",
        "serving.speedup_continuous", ".2f", "serving.speedup_continuous",
    ),
)  # fmt: skip


def comparisons(rows: Sequence[Job]) -> Iterator[Comparison]:
    """Yield every published figure with each row of the smallest stacks that hold its method."""
    for one in PUBLISHED:
        holding = [row for row in rows if row.ok and one.method in row.methods]
        least = min((len(row.methods) for row in holding), default=0)
        for row in holding:
            if len(row.methods) == least:
                yield Comparison(one, row, mark(one.field, row, rows))


def published_table(rows: Sequence[Job]) -> Table | None:
    """Return one row a published figure and stack; None where no paper is of any of them."""
    found = [*comparisons(rows)]
    lines = [
        (
            cell(code(one.published.method)),
            cell(one.published.quantity),
            cell(f"{one.published.figure}, {one.published.setting} ({one.published.source})"),
            stack_cell(one.row.label),
            cell(f"not measured: {one.reason}")
            if one.measured is None
            else Cell(
                marked(written(one.measured, one.published.form), one.mark), middle(one.measured)
            ),
        )
        for one in found
    ]
    heads = ("method", "of what", "published", "stack", "measured here")
    note = f"{NOTE} {explained(one.mark for one in found)}".rstrip()
    return Table(TITLE, heads, tuple(lines), note=note) if lines else None
