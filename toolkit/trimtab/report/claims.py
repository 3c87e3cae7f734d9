"""What is claimed of AdaptiVocab and vAttention together, answered from what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from trimtab.report.balance import NOTICED
from trimtab.report.figures import NONE, written
from trimtab.report.job import Job
from trimtab.report.table import Cell, Table, cell, stack_cell
from trimtab.report.verdict import FASTER, NOISY, UNMEASURED, verdict

TOGETHER = {"adaptivocab", "vattention"}
NOTE = (
    "Of every stack that holds AdaptiVocab and vAttention, beside the unmodified model. Tokens and "
    f"memory are counted: confirmed where they are at least {NOTICED:.1%} less. Drafts save forward"
    " passes, not tokens. Texts per second are confirmed where the stack is `faster`, and not "
    "where it is slower or no difference was found."
)
CONFIRMED, REFUTED, OPEN = "confirmed", "not confirmed", "not measured"


@dataclass(frozen=True)
class Claim:
    """One claim about one stack.

    Attributes
    ----------
    row : Job
    claim : str
    amounts : mapping of str to float, or None
        Of the ``baseline`` and the ``candidate``; None where they were not measured.
    change : dict or float or None
        What the candidate's amount is of the baseline's: an interval, or what was counted.
    answer : str
        `CONFIRMED`, `REFUTED`, `trimtab.report.verdict.NOISY` or `OPEN`.
    form : str
        Format specification of the amounts.
    scale : float
        What they are multiplied by to be written.
    """

    row: Job
    claim: str
    amounts: dict[str, float] | None
    change: Any
    answer: str
    form: str
    scale: float = 1


def claims(rows: Sequence[Job]) -> Iterator[Claim]:
    """Yield the claims about every stack that holds both methods."""
    for row in rows:
        if row.ok and set(row.methods) >= TOGETHER:
            yield from (ask(row, rows) for ask in (_tokens, _memory, _texts))


def _tokens(row: Job, rows: Sequence[Job]) -> Claim:
    return _counted(row, "fewer tokens for the same text", "tokens", ",.0f")


def _memory(row: Job, rows: Sequence[Job]) -> Claim:
    serving = "derived.serving_kv_bytes"
    if row.get(serving) is not None:
        return _counted(row, "less KV memory while serving, MB", serving, ",.1f", 1e-6)
    one_text = "derived.kv_bytes_per_byte"
    return _counted(row, "less KV memory for one text, kB per byte", one_text, ",.1f", 1e-3)


def _counted(row: Job, claim: str, field: str, form: str, scale: float = 1) -> Claim:
    """Answer by what was counted, which has no noise."""
    found = row.get(field)
    if not found or found.get("baseline") is None or found.get("candidate") is None:
        return Claim(row, claim, None, None, OPEN, form, scale)
    amounts = {name: found[name] for name in ("baseline", "candidate")}
    share = amounts["candidate"] / amounts["baseline"]
    answer = CONFIRMED if 1 - share >= NOTICED else REFUTED
    return Claim(row, claim, amounts, share, answer, form, scale)


def _texts(row: Job, rows: Sequence[Job]) -> Claim:
    found = verdict(row, rows)
    answers = {FASTER: CONFIRMED, NOISY: NOISY, UNMEASURED: OPEN}
    return Claim(
        row,
        "more texts per second, one at a time",
        row.get("speed.texts_per_s"),
        row.get("speed.speedup"),
        answers.get(found, REFUTED),
        ".2f",
    )


def claims_table(rows: Sequence[Job]) -> Table | None:
    """Return one row a claim; None where no stack holds both methods."""
    lines = [
        (
            stack_cell(one.row.label),
            cell(one.claim),
            *(cell((one.amounts or {}).get(name), one.form, one.scale)
              for name in ("baseline", "candidate")),
            Cell(f"× {written(one.change, '.2f')}" if one.change else NONE),
            cell(one.answer),
        )
        for one in claims(rows)
    ]  # fmt: skip
    heads = ("stack", "claim", "unmodified model", "with the stack", "change", "answer")
    return (
        Table("Three claims about the methods together", heads, tuple(lines), note=NOTE)
        if lines
        else None
    )
