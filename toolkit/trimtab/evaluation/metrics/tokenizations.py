"""The likelihood of a text over all the ways to write it in the candidate's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

from typing_extensions import TypedDict

from trimtab.evaluation.contenders import Contender
from trimtab.evaluation.intervals import Estimate
from trimtab.evaluation.job import Job
from trimtab.evaluation.metrics.compression import Compression
from trimtab.evaluation.metrics.metric import Metric, Rows, names
from trimtab.evaluation.metrics.scores import difference, rate, score_rows
from trimtab.evaluation.result import Result
from trimtab.evaluation.scoring import Score
from trimtab.progress import track
from trimtab.windows import evenly

NAME = "quality.marginal_likelihood"


class Bits(TypedDict):
    """Bits per byte; the difference is marginal minus canonical."""

    canonical: float
    marginal: float
    difference: Estimate


class Section(TypedDict):
    """What `quality.marginal_likelihood` holds."""

    bits_per_byte: Bits
    samples: int
    windows: int


class Tokenizations(Metric):
    """Bits per byte as the tokenizer writes a text, and over all its tokenizations."""

    reads_weights = True
    needs = (Compression,)
    fields: ClassVar[dict[str, Any]] = {NAME: Section, "samples.marginal_likelihood": Rows}

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        prompts, quality = job.metric(Compression).windows, job.settings.quality
        count = min(quality.marginal_likelihood_windows, len(prompts))
        self.windows = evenly(prompts, count)
        self.scores: dict[str, list[Score]] = {"canonical": [], "marginal": []}

    def measure(self, contenders: Sequence[Contender]) -> None:
        """See `Metric.measure`."""
        settings, windows = self.job.settings, self.windows
        for one in contenders:
            if not one.stack.ngram_tokens:
                continue
            for window in track(windows, f"Marginal likelihood: {names([one])}", len(windows)):
                canonical = replace(one.score(window), log_probs=None)
                marginal = one.score_all_tokenizations(
                    window, settings.quality.marginal_likelihood_samples, settings.seed
                )
                self.scores["canonical"].append(canonical)
                self.scores["marginal"].append(marginal)

    def summarise(self, result: Result, baseline: Contender, candidate: Contender) -> None:
        """See `Metric.summarise`."""
        settings, scores = self.job.settings, self.scores
        result.put("samples.marginal_likelihood", score_rows(self.windows, scores))
        if not candidate.stack.ngram_tokens:
            result.missing(NAME, "no output token stands for several base tokens")
        elif settings.quality.marginal_likelihood_windows == 0:
            result.missing(NAME, "quality.marginal_likelihood_windows=0")
        elif len(self.windows) < 2:
            result.missing(NAME, "fewer than 2 prompts were compressed")
        else:
            bits = {name: rate(found) for name, found in scores.items()}
            change = difference(scores["canonical"], scores["marginal"], settings.seed)
            result.put(
                NAME,
                {
                    "bits_per_byte": {**bits, "difference": change},
                    "samples": settings.quality.marginal_likelihood_samples,
                    "windows": len(self.windows),
                },
            )
