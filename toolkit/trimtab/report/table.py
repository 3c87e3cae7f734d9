"""The figures of a sweep as Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from trimtab.files import flatten, is_table
from trimtab.report.load import Job

Column = tuple[str, Callable[[Job], str]]


def code(text: str) -> str:
    """Return a text as Markdown's code, backticks that it holds included."""
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def interval(value: dict[str, float] | None, form: str = ".3f") -> str:
    """Format an estimate and its 95 % interval, or a dash where there is none."""
    if value is None:
        return "-"
    return f"{value['estimate']:{form}} [{value['low']:{form}}, {value['high']:{form}}]"


def number(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"


def _field(name: str, form: str) -> Callable[[Job], str]:
    return lambda job: number(job.get(name), form)


def _interval_field(name: str, form: str = ".3f") -> Callable[[Job], str]:
    return lambda job: interval(job.get(name), form)


COLUMNS: list[Column] = [
    ("stack", lambda job: _cell(code(job.label))),
    ("bits per byte", _field("quality.bits_per_byte.candidate", ".4f")),
    ("change", _interval_field("quality.bits_per_byte.difference", "+.4f")),
    ("perplexity", _field("quality.perplexity.candidate", ".3f")),
    ("x dense", _interval_field("quality.perplexity.ratio")),
    ("other domain", _interval_field("quality.out_of_domain.bits_per_byte.difference", "+.4f")),
    ("same text", _field("quality.greedy_agreement", ".0%")),
    ("tokens saved", _field("tokens.saving", ".1%")),
    ("steps saved", _field("tokens.steps.saving", ".1%")),
    ("sparsity", _field("sparsity.achieved", ".3f")),
    ("bytes needed", _field("sparsity.bytes_fraction", ".3f")),
    ("decode tokens/s", _field("speed.decode_tokens_per_s.candidate", ".1f")),
    ("speedup", _interval_field("speed.speedup")),
]


COMPRESSION: list[Column] = [
    ("stack", lambda job: _cell(code(job.label))),
    ("prompt tokens", _field("quality.compression.tokens.baseline", "")),
    ("compressed", _field("quality.compression.tokens.candidate", "")),
    ("bits per byte", _field("quality.compression.bits_per_byte.baseline", ".4f")),
    ("compressed", _field("quality.compression.bits_per_byte.candidate", ".4f")),
    ("prompt cut", _field("quality.compression.bits_per_byte.prompt_cut", ".4f")),
    ("compressed - cut", _interval_field("quality.compression.bits_per_byte.difference", "+.4f")),
]


def compression_table(jobs: Sequence[Job]) -> str:
    """Return one row a job whose stack compresses prompts."""
    rows = [_row(form(job) for _, form in COMPRESSION) for job in jobs]
    return "\n".join(_head(COMPRESSION) + rows)


def markdown_table(jobs: Sequence[Job]) -> str:
    """Return one row a job, failed ones as failed."""
    lines = _head(COLUMNS)
    for job in jobs:
        cells = [form(job) for _, form in COLUMNS]
        if not job.ok:
            message = _cell(" ".join(job.content["message"].split()))
            cells = [cells[0], f"**failed**: {message}", *[""] * (len(COLUMNS) - 2)]
        lines.append(_row(cells))
    return "\n".join(lines)


def csv_table(jobs: Sequence[Job]) -> str:
    """Return every scalar field of every job, one row a job, under its dotted name."""
    rows = [_scalars({**job.content, "label": job.label}) for job in jobs]
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _head(columns: Sequence[Column]) -> list[str]:
    return [_row(name for name, _ in columns), "|---" * len(columns) + "|"]


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _scalars(content: dict[str, Any]) -> dict[str, Any]:
    figures = {name: item for name, item in content.items() if name not in ("samples", "reasons")}
    return {
        name: " ".join(map(str, item)) if isinstance(item, list) else item
        for name, item in flatten(figures).items()
        if not is_table(item)
    }
