"""How well the models predict held-out text, in the tokens that they read and write."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

from typing_extensions import TypedDict

from trimtab.evaluation.contenders import Contender
from trimtab.evaluation.display import Column
from trimtab.evaluation.held_out import read_otherwise
from trimtab.evaluation.intervals import Estimate, rate_difference, ratio
from trimtab.evaluation.job import Job
from trimtab.evaluation.metrics.metric import Metric, Rows, names
from trimtab.evaluation.metrics.scores import (
    DIFFERENT,
    SAME,
    BitsPerByte,
    WindowsScored,
    bits_per_byte,
    score_rows,
)
from trimtab.evaluation.result import Result
from trimtab.evaluation.scoring import Score, divergence
from trimtab.evaluation.workload import quality_windows
from trimtab.progress import track

TOO_LARGE = "it is larger than a number of 64 bits can be: quality.bits_per_byte says how bad it is"
UNPAIRED = "paired=false: the two models were never scored together"


class Perplexity(TypedDict):
    """Perplexity of both contenders, and the candidate's over the baseline's."""

    baseline: float
    candidate: float
    ratio: Estimate


class Likelihood(Metric):
    """Bits per byte, perplexity and divergence on windows of held-out text."""

    reads_weights = True
    generates = True
    columns = (
        Column(
            "bits per byte",
            "quality.bits_per_byte.candidate",
            ".4f",
            "what the model needs per byte of held-out text; lower is better",
            always=True,
        ),
        Column(
            "change", "derived.bits_increase", "+.1%", "of bits per byte over the unmodified model"
        ),
        Column(
            "perplexity",
            "quality.perplexity.candidate",
            ".3f",
            "per token; of models with the same tokenizer alone",
        ),
        Column("x dense", "quality.perplexity.ratio", ".3f", "perplexity over the unmodified one"),
    )
    fields: ClassVar[dict[str, Any]] = {
        "quality.bits_per_byte": BitsPerByte,
        "quality.perplexity": Perplexity,
        "quality.kl_bits_per_token": Estimate,
        "quality.windows": int,
        "quality.scored_bytes": int,
        "quality.base_tokens": WindowsScored,
        "samples.windows": Rows,
        "samples.base_tokens": Rows,
    }

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        quality = job.settings.quality
        self.windows = quality_windows(job.documents, quality)
        job.require_positions(
            ((one.context, one.text) for one in self.windows),
            f"quality.window_bytes={quality.window_bytes}",
        )
        self.scores: dict[str, list[Score]] = {"baseline": [], "candidate": []}
        self.base_tokens: list[Score] = []
        self._divergences: list[float] = []

    def measure(self, contenders: Sequence[Contender]) -> None:
        """See `Metric.measure`."""
        windows = self.windows
        for window in track(windows, f"Bits per byte: {names(contenders)}", len(windows)):
            scores = []
            for one in contenders:
                with one.stack.recording():
                    scores.append(one.score(window))
            if len(scores) == 2 and not self.job.changes_vocabulary:
                self._divergences.append(divergence(*scores))
            for one, score in zip(contenders, scores, strict=True):
                self.scores[one.name].append(replace(score, log_probs=None))
        for one in contenders:
            if one.changes_vocabulary:
                title = f"Bits per byte in base tokens: {names([one])}"
                tracked = track(windows, title, len(windows))
                self.base_tokens = [one.score_base_tokens(window) for window in tracked]

    def summarise(self, result: Result, baseline: Contender, candidate: Contender) -> None:
        """See `Metric.summarise`."""
        first, second = self.scores["baseline"], self.scores["candidate"]
        seed, changed = self.job.settings.seed, self.job.changes_vocabulary
        tokens = [score.tokens for score in first]
        result.put("quality.bits_per_byte", bits_per_byte(first, second, seed))
        result.put("quality.windows", len(first))
        result.put("quality.scored_bytes", sum(score.size for score in first))
        if changed:
            found = bits_per_byte(first, self.base_tokens, seed)
            result.put("quality.base_tokens", {"bits_per_byte": found})
            result.missing("quality.perplexity", f"{DIFFERENT}: perplexities do not compare")
        else:
            try:
                result.put("quality.perplexity", _perplexity(first, second, seed))
            except OverflowError:
                result.missing("quality.perplexity", TOO_LARGE)
            result.missing("quality.base_tokens", SAME)
        if self._divergences:
            bits = [nats / math.log(2) for nats in self._divergences]
            rate = ratio(bits, tokens, paired=True, seed=seed)
            result.put("quality.kl_bits_per_token", rate)
        else:
            result.missing("quality.kl_bits_per_token", DIFFERENT if changed else UNPAIRED)
        if changed_text := read_otherwise(self.windows, self.job.tokenizer):
            result.warn(changed_text)
        result.put("samples.windows", score_rows(self.windows, self.scores))
        base_tokens = score_rows(self.windows, {"candidate": self.base_tokens})
        result.put("samples.base_tokens", base_tokens)


def _perplexity(first: Sequence[Score], second: Sequence[Score], seed: int) -> Perplexity:
    tokens = [score.tokens for score in first]
    nats = [[score.nats for score in scores] for scores in (first, second)]
    change = rate_difference(nats[0], nats[1], tokens, seed=seed)
    return {
        "baseline": math.exp(sum(nats[0]) / sum(tokens)),
        "candidate": math.exp(sum(nats[1]) / sum(tokens)),
        "ratio": {
            "estimate": math.exp(change["estimate"]),
            "low": math.exp(change["low"]),
            "high": math.exp(change["high"]),
        },
    }
