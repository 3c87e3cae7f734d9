"""How much was measured: what the figures of a report rest on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from trimtab.evaluation.rounds import StoppedBy
from trimtab.report.figures import span
from trimtab.report.job import Job

STOPPED = {
    StoppedBy.precision: "as the interval was narrow enough (`speed.precision`)",
    StoppedBy.time_limit: "by the time limit (`speed.seconds`)",
    StoppedBy.count_limit: "by their number (`speed.repeats`, `speed.more_repeats`)",
}


def extent(rows: Sequence[Job]) -> str:
    """Return what the figures of rows that compare rest on; empty without any."""
    parts = [part for say in (_speed, _quality, _serving) if (part := "; ".join(say(rows)))]
    rest = [f"These figures rest on: {'; '.join(parts)}."] if parts else []
    return " ".join([*rest, *_ended(rows)])


def _speed(rows: Sequence[Job]) -> Iterator[str]:
    timed = [one for row in rows for one in row.get("samples.timings") or ()]
    if timed:
        prompts = span(1 + max(one["prompt"] for one in row.get("samples.timings"))
                       for row in rows if row.get("samples.timings"))  # fmt: skip
        compared = any(row.get("quality.exact_match") is not None for row in rows)
        yield (
            f"for speed (scenario latency, one text at a time){' and greedy texts' * compared}, "
            f"{_some(prompts, 'prompt')} of {_tokens(timed, 'prompt_tokens')}, "
            f"continued by {_tokens(timed, 'new_tokens')}, "
            f"in {_some(_figures(rows, 'speed.rounds.done'), 'round')}"
        )


def _quality(rows: Sequence[Job]) -> Iterator[str]:
    windows = _figures(rows, "quality.windows")
    if windows:
        read = span(len({one["document"] for one in row.get("samples.windows")})
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
            f"for serving (scenario serving), {' and '.join(map(str, counts))} requests together, "
            f"in {_some(span(one['rounds'] for one in servers), 'round')}"
        )


def _ended(rows: Sequence[Job]) -> Iterator[str]:
    """Yield why rounds of timing ended, how far speedups are known, and how many are outliers."""
    ends: dict[str, list[float]] = {}
    for row in rows:
        if stopped := row.get("speed.rounds.stopped_by"):
            ends.setdefault(stopped, []).append(row.get("speed.rounds.half_width"))
    every = sum(map(len, ends.values()))
    told = [
        " or ".join(STOPPED[StoppedBy(one)] for one in stopped.split(" / "))
        + f" in {len(widths)} of {every} rows" * (len(ends) > 1)
        + f", the speedup known to ±{span((100 * one for one in widths), '.1f')} %"
        for stopped, widths in ends.items()
    ]
    if told:
        outliers = sum(
            round(count * (len(row.seeds) or 1))
            for row in rows
            for count in (row.get("speed.outliers") or {}).values()
        )
        yield (
            f"Rounds of timing ended {'; '.join(told)}. {_some(f'{outliers:,}', 'generation')} "
            "took far more or less time than others of the same prompt, and count like them."
        )


def _tokens(timed: Iterable[dict[str, Any]], name: str) -> str:
    return _some(span(one[name] for one in timed), "token")


def _figures(rows: Sequence[Job], field: str) -> str:
    return span(value for row in rows if (value := row.get(field)) is not None)


def _some(number: str, word: str) -> str:
    return f"{number} {word}" if number == "1" else f"{number} {word}s"
