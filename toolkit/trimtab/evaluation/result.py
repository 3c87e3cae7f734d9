"""Turn raw samples into result.json: every figure under the name docs/results.md documents.

Nothing is filled in that was not measured: such a field is None, and `reasons` says why.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from trimtab.evaluation.cache_memory import PAGEMAP, CacheKind
from trimtab.evaluation.quality import Score
from trimtab.evaluation.sides import Side, Workload
from trimtab.evaluation.text import Window
from trimtab.evaluation.timing import Timing

Section = dict[str, Any]


class Result:
    """Sections of result.json, and the reasons for what is missing in them."""

    def __init__(self) -> None:
        self.sections: Section = {}
        self.reasons: dict[str, str] = {}

    def missing(self, name: str, reason: str) -> None:
        """Note that the dotted field `name` was not measured."""
        *sections, field = name.split(".")
        place = self.sections
        for section in sections:
            place = place.setdefault(section, {})
        place[field] = None
        self.reasons[name] = reason


def tokens_section(result: Result, baseline: Side, candidate: Side) -> None:
    """Fill `tokens`: what the timed prompts and continuations take in each tokenizer."""

    def section(count: Callable[[Timing], int]) -> Section:
        found = both(lambda side: sum(map(count, side.timings)), baseline, candidate)
        return {**found, "saving": 1 - found["candidate"] / found["baseline"]}

    result.sections["tokens"] = {
        **section(lambda timing: timing.prompt_tokens + timing.new_tokens),
        "prompt": section(lambda timing: timing.prompt_tokens),
        "output": section(lambda timing: timing.new_tokens),
        "steps": section(lambda timing: timing.steps),
        "per_byte_of_output": both(
            lambda side: total(side, "new_tokens") / total(side, "size"), baseline, candidate
        ),
    }


def kv_section(result: Result, baseline: Side, candidate: Side) -> None:
    """Fill `kv`: the KV cache of the largest timed generation, and transformers' for the same."""
    timings = candidate.timings
    index = max(range(len(timings)), key=lambda number: timings[number].live_bytes)
    largest = timings[index]
    text = largest.prompt_size + largest.size
    static, dynamic = candidate.caches[CacheKind.static], baseline.caches[CacheKind.dynamic]
    measured = largest.measured_bytes
    if measured is None:
        measured = candidate.caches[CacheKind.dynamic].measured
    result.sections["kv"] = {
        "live_bytes": largest.live_bytes,
        "committed_bytes": largest.committed_bytes,
        "reserved_bytes": largest.reserved_bytes,
        "wasted_bytes": largest.committed_bytes - largest.live_bytes,
        "static_bytes": static.committed,
        "dynamic_bytes": dynamic.committed,
        "tokens": largest.prompt_tokens + largest.new_tokens,
        "live_bytes_per_byte": both(
            lambda side: side.timings[index].live_bytes / text, baseline, candidate
        ),
    }
    for name, found in (
        ("measured_bytes", measured),
        ("static_measured_bytes", static.measured),
        ("dynamic_measured_bytes", dynamic.measured),
    ):
        result.sections["kv"][name] = found
        if found is None:
            result.missing(f"kv.{name}", f"no {PAGEMAP}: the system does not say what is in memory")


def engine_section(result: Result, candidate: Side) -> None:
    """Fill `engine`: what the engine that generated did over all generation of the job."""
    if candidate.engine_stats is None:
        result.missing("engine", "transformers generated: no method of the stack has a KV cache")
    else:
        result.sections["engine"] = asdict(candidate.engine_stats)


def samples_section(result: Result, baseline: Side, candidate: Side, work: Workload) -> None:
    """Fill `samples`: every raw sample that a figure above was made from, and the texts."""
    sides = (baseline, candidate)
    result.sections["samples"] = {
        "timings": [
            {"model": side.name, "prompt": index % len(work.prompts), **asdict(timing)}
            for side in sides
            for index, timing in enumerate(side.timings)
        ],
        "windows": [
            row for side in sides for row in _score_rows(side.name, work.windows, side.scores)
        ],
        "base_tokens": _score_rows("candidate", work.windows, candidate.base_scores),
        "canary": [
            row for side in sides for row in _score_rows(side.name, work.canary, side.canary)
        ],
        "compression": [
            row
            for name, scores in compression_scores(baseline, candidate).items()
            for row in _score_rows(name, work.compression, scores)
        ],
        "marginal": [
            row
            for name, scores in (
                ("canonical", candidate.canonical), ("marginal", candidate.marginal)
            )
            for row in _score_rows(name, work.marginal, scores)
        ],
        "texts": [
            {"document": prompt.document, "prompt": prompt.text, "baseline": first,
             "candidate": second}
            for prompt, first, second in zip(
                work.prompts, baseline.texts, candidate.texts, strict=True
            )
        ],
    }  # fmt: skip


def both(figure: Callable[[Side], float], baseline: Side, candidate: Side) -> Section:
    return {"baseline": figure(baseline), "candidate": figure(candidate)}


def total(side: Side, name: str) -> float:
    return sum(getattr(timing, name) for timing in side.timings)


def compression_scores(baseline: Side, candidate: Side) -> dict[str, list[Score]]:
    """Return the scores behind compressed prompts and behind what they are compared with."""
    return {
        "baseline": baseline.whole,
        "candidate": candidate.compression,
        "prompt_cut": baseline.prompt_cut,
    }


def _score_rows(model: str, windows: Sequence[Window], scores: Sequence[Score]) -> list[Section]:
    return [
        {
            "model": model,
            "document": window.document,
            "bits": score.bits,
            "tokens": score.tokens,
            "context_tokens": score.context_tokens,
            "bytes": score.size,
        }
        for window, score in zip(windows, scores, strict=False)
    ]
