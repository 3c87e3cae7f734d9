"""Figures of scored windows, as several metrics have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from typing_extensions import TypedDict

from trimtab.evaluation.intervals import Estimate, rate_difference
from trimtab.evaluation.metrics.metric import Rows
from trimtab.evaluation.scoring import Score
from trimtab.evaluation.workload import Window

DIFFERENT = "the tokenizers differ"
SAME = "the vocabulary is the unmodified model's"


class BitsPerByte(TypedDict):
    """Bits per byte of both contenders; the difference is candidate minus baseline."""

    baseline: float
    candidate: float
    difference: Estimate


class WindowsScored(TypedDict):
    """A section of bits per byte alone."""

    bits_per_byte: BitsPerByte


def bits_per_byte(first: Sequence[Score], second: Sequence[Score], seed: int) -> BitsPerByte:
    """Compare the baseline's scores and the candidate's of the same windows."""
    return {
        "baseline": rate(first),
        "candidate": rate(second),
        "difference": difference(first, second, seed),
    }


def rate(scores: Sequence[Score]) -> float:
    """Return bits per byte."""
    return sum(score.bits for score in scores) / sum(score.size for score in scores)


def difference(first: Sequence[Score], second: Sequence[Score], seed: int) -> Estimate:
    """Return the second's bits per byte less the first's, window by window."""
    bits = [[score.bits for score in scores] for scores in (first, second)]
    return rate_difference(bits[0], bits[1], [score.size for score in first], seed=seed)


def score_rows(windows: Sequence[Window], scores: Mapping[str, Sequence[Score]]) -> Rows:
    """Return a row a window and model."""
    return [
        {
            "model": model,
            "document": window.document,
            "bits": score.bits,
            "tokens": score.tokens,
            "context_tokens": score.context_tokens,
            "bytes": score.size,
        }
        for model, found in scores.items()
        for window, score in zip(windows, found, strict=bool(found))
    ]
