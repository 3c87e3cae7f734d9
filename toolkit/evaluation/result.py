"""Turn raw samples into result.json: every figure under the name docs/results.md documents.

Nothing is filled in that was not measured: such a field is None, and `reasons` says why.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from statistics import mean, median
from typing import Any

import numpy as np

from toolkit.evaluation.generation import Timing
from toolkit.evaluation.intervals import rate_difference, ratio
from toolkit.evaluation.measure import Side, Workload
from toolkit.evaluation.quality import common_prefix

Section = dict[str, Any]

RANDOM = "the weights are random: what they predict means nothing"
UNPAIRED = "paired=false: the two models were never scored together"


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


def quality_section(
    result: Result, baseline: Side, candidate: Side, *, known_weights: bool, seed: int
) -> None:
    """Fill `quality` from the scores and the greedy texts of both sides."""
    if not known_weights:
        result.missing("quality", RANDOM)
        return
    sizes = [score.size for score in baseline.scores]
    bits = {side.name: [score.bits for score in side.scores] for side in (baseline, candidate)}
    tokens = [score.tokens for score in baseline.scores]
    same_tokenizer = baseline.tokenizer is candidate.tokenizer
    result.sections["quality"] = quality = {
        "bits_per_byte": {
            **_both(lambda side: sum(bits[side.name]) / sum(sizes), baseline, candidate),
            "difference": rate_difference(bits["baseline"], bits["candidate"], sizes, seed=seed),
        },
        "greedy_agreement": _agreement(baseline.texts, candidate.texts),
        "exact_match": mean(
            first == second for first, second in zip(baseline.texts, candidate.texts, strict=True)
        ),
        "windows": len(sizes),
        "scored_bytes": sum(sizes),
    }
    if same_tokenizer:
        perplexity = _both(
            lambda side: float(np.exp(sum(s.nats for s in side.scores) / sum(tokens))),
            baseline,
            candidate,
        )
        difference = rate_difference(
            [score.nats for score in baseline.scores],
            [score.nats for score in candidate.scores],
            tokens,
            seed=seed,
        )
        quality["perplexity"] = {
            **perplexity,
            "ratio": {name: float(np.exp(value)) for name, value in difference.items()},
        }
    else:
        result.missing("quality.perplexity", "the tokenizers differ: perplexities do not compare")
    if candidate.divergences:
        quality["kl_bits_per_token"] = sum(candidate.divergences) / np.log(2) / sum(tokens)
    else:
        result.missing(
            "quality.kl_bits_per_token", UNPAIRED if same_tokenizer else "the tokenizers differ"
        )
    result.missing("quality.tasks", "no lm-eval tasks are run by this version")


def tokens_section(result: Result, baseline: Side, candidate: Side) -> None:
    """Fill `tokens`: what the timed prompts and continuations take in each tokenizer."""

    def section(count: Callable[[Timing], int]) -> Section:
        both = _both(lambda side: sum(map(count, side.timings)), baseline, candidate)
        return {**both, "saving": 1 - both["candidate"] / both["baseline"]}

    result.sections["tokens"] = {
        **section(lambda timing: timing.prompt_tokens + timing.new_tokens),
        "prompt": section(lambda timing: timing.prompt_tokens),
        "output": section(lambda timing: timing.new_tokens),
        "per_byte_of_output": _both(
            lambda side: _total(side, "new_tokens") / _total(side, "size"), baseline, candidate
        ),
    }


def kv_section(result: Result, baseline: Side, candidate: Side) -> None:
    """Fill `kv`: the KV cache of the largest timed generation, measured from its tensors."""
    largest = max(candidate.timings, key=lambda timing: timing.live_bytes)
    result.sections["kv"] = {
        "live_bytes": largest.live_bytes,
        "committed_bytes": largest.committed_bytes,
        "reserved_bytes": largest.committed_bytes,
        "wasted_bytes": largest.committed_bytes - largest.live_bytes,
        "static_bytes": candidate.static_bytes,
        "dynamic_bytes": max(timing.committed_bytes for timing in baseline.timings),
        "tokens": largest.prompt_tokens + largest.new_tokens,
        "live_bytes_per_byte_of_text": largest.live_bytes / (largest.prompt_size + largest.size),
    }


def speed_section(
    result: Result,
    baseline: Side,
    candidate: Side,
    *,
    paired: bool,
    bandwidth: float,
    seed: int,
) -> None:
    """Fill `speed` from the timed generations."""

    def both(figure: Callable[[Side], float]) -> Section:
        return _both(figure, baseline, candidate)

    def gaps(side: Side) -> list[float]:
        return [gap for timing in side.timings for gap in timing.gaps]

    def speedup(seconds: Callable[[Timing], float]) -> Section:
        # Both sides produce the same bytes, so a ratio of times is one of times per byte.
        taken = [[seconds(timing) for timing in side.timings] for side in (baseline, candidate)]
        return dict(ratio(*taken, paired=paired, seed=seed))

    def percentile(point: int) -> Section:
        return both(lambda side: 1e3 * float(np.percentile(gaps(side), point)))

    result.sections["speed"] = {
        "paired": paired,
        "ttft_ms": both(lambda side: 1e3 * median(timing.first for timing in side.timings)),
        "ms_per_token": {f"p{point}": percentile(point) for point in (50, 90, 99)},
        "prefill_tokens_per_s": both(
            lambda side: _total(side, "prompt_tokens") / _total(side, "first")
        ),
        "decode_tokens_per_s": both(lambda side: len(gaps(side)) / sum(gaps(side))),
        "texts_per_s": both(lambda side: len(side.timings) / _total(side, "total")),
        "ms_per_byte": both(lambda side: 1e3 * _total(side, "total") / _total(side, "size")),
        "speedup": speedup(lambda timing: timing.total),
        "prefill_speedup": speedup(lambda timing: timing.first),
        "decode_speedup": speedup(lambda timing: sum(timing.gaps)),
        "copy_bytes_per_s": bandwidth,
        "step_bytes": both(lambda side: side.step_bytes),
        "roofline_share": both(lambda side: side.step_bytes / median(gaps(side)) / bandwidth),
    }


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
            {"model": side.name, "document": window.document, "bits": score.bits,
             "tokens": score.tokens, "bytes": score.size}
            for side in sides
            for window, score in zip(work.windows, side.scores, strict=False)
        ],
        "texts": [
            {"document": prompt.document, "prompt": prompt.text, "baseline": first,
             "candidate": second}
            for prompt, first, second in zip(
                work.prompts, baseline.texts, candidate.texts, strict=True
            )
        ],
    }  # fmt: skip


def _both(figure: Callable[[Side], float], baseline: Side, candidate: Side) -> Section:
    return {"baseline": figure(baseline), "candidate": figure(candidate)}


def _total(side: Side, name: str) -> float:
    return sum(getattr(timing, name) for timing in side.timings)


def _agreement(first: Sequence[str], second: Sequence[str]) -> float:
    """Return the mean share of the baseline's characters before the first difference."""
    return mean(
        common_prefix(left, right) / max(len(left), len(right), 1)
        for left, right in zip(first, second, strict=True)
    )
