"""How much was measured: what the figures of a report rest on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from trimtab.report.job import Job


def extent(rows: Sequence[Job]) -> str:
    """Return what the figures of rows that compare rest on, as a sentence; empty without any."""
    parts = [part for say in (_speed, _quality, _serving) if (part := "; ".join(say(rows)))]
    return f"These figures rest on: {'; '.join(parts)}." if parts else ""


def _speed(rows: Sequence[Job]) -> Iterator[str]:
    timed = [one for row in rows for one in row.get("samples.timings") or ()]
    if timed:
        prompts = _span(1 + max(one["prompt"] for one in row.get("samples.timings"))
                        for row in rows if row.get("samples.timings"))  # fmt: skip
        compared = any(row.get("quality.exact_match") is not None for row in rows)
        yield (
            f"for speed{' and greedy texts' * compared}, {_some(prompts, 'prompt')} of "
            f"{_tokens(timed, 'prompt_tokens')}, continued by {_tokens(timed, 'new_tokens')}, "
            f"in {_some(_figures(rows, 'speed.rounds.done'), 'round')}"
        )


def _quality(rows: Sequence[Job]) -> Iterator[str]:
    windows = _figures(rows, "quality.windows")
    if windows:
        read = _span(len({one["document"] for one in row.get("samples.windows")})
                     for row in rows if row.get("samples.windows"))  # fmt: skip
        yield (
            f"for quality, {_some(windows, 'window')} of held-out text with "
            f"{_figures(rows, 'quality.scored_bytes')} bytes scored, from {read} of "
            f"{_some(_figures(rows, 'corpus.documents'), 'document')}"
        )


def _serving(rows: Sequence[Job]) -> Iterator[str]:
    servers = [one for row in rows for one in row.get("serving.servers") or ()]
    if servers:
        counts = sorted({one["requests"] for one in servers})
        yield (
            f"for serving, {' and '.join(map(str, counts))} requests together, "
            f"in {_some(_span(one['rounds'] for one in servers), 'round')}"
        )


def _tokens(timed: Iterable[dict[str, Any]], name: str) -> str:
    return _some(_span(one[name] for one in timed), "token")


def _figures(rows: Sequence[Job], field: str) -> str:
    return _span(value for row in rows if (value := row.get(field)) is not None)


def _span(values: Iterable[float]) -> str:
    """Return a number, or the least and the most of several; nothing of none."""
    found = sorted(values)
    ends = dict.fromkeys(f"{value:,.0f}" for value in (*found[:1], *found[-1:]))
    return " to ".join(ends)


def _some(number: str, word: str) -> str:
    return f"{number} {word}" if number == "1" else f"{number} {word}s"
