"""What a prompt in fewer tokens is worth, beside one whose oldest tokens were cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

from typing_extensions import TypedDict

from trimtab.config import QualityConfig
from trimtab.corpora import Document
from trimtab.evaluation.contenders import Contender
from trimtab.evaluation.intervals import Estimate
from trimtab.evaluation.job import Job
from trimtab.evaluation.metrics.metric import Metric, Rows, names
from trimtab.evaluation.metrics.scores import SAME, difference, rate, score_rows
from trimtab.evaluation.result import Result
from trimtab.evaluation.scoring import Score, score
from trimtab.evaluation.workload import Window, windows_of
from trimtab.progress import track
from trimtab.windows import LONGEST_CHARACTER, evenly

NAME = "quality.compression"


class Bits(TypedDict):
    """Bits per byte after each prompt; the difference is candidate minus the prompt cut."""

    baseline: float
    candidate: float
    prompt_cut: float
    difference: Estimate


class Tokens(TypedDict):
    """Tokens of the prompts."""

    baseline: int
    candidate: int
    prompt_cut: int


class Section(TypedDict):
    """What `quality.compression` holds."""

    bits_per_byte: Bits
    tokens: Tokens
    beats_control: bool
    windows: int


class Compression(Metric):
    """Bits per byte of what follows a whole prompt, a compressed one, and one that was cut.

    Attributes
    ----------
    windows : list of Window
        The context of each is the prompt; none where the vocabulary is the unmodified model's.
    """

    reads_weights = True
    generates = True
    fields: ClassVar[dict[str, Any]] = {NAME: Section, "samples.compression": Rows}

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        quality = job.settings.quality
        self.windows = compression_windows(job.documents, quality) if job.changes_vocabulary else []
        job.require_positions(
            ((one.context, one.text) for one in self.windows),
            f"quality.compression_context_bytes={quality.compression_context_bytes} "
            f"quality.compression_bytes={quality.compression_bytes}",
        )
        self.scores: dict[str, list[Score]] = {"baseline": [], "candidate": [], "prompt_cut": []}

    def measure(self, contenders: Sequence[Contender]) -> None:
        """See `Metric.measure`. How much is cut, the compressed prompts say."""
        if not self.windows:
            return
        for one in sorted(contenders, key=lambda one: one.name != "candidate"):
            windows = track(self.windows, f"Compressed prompts: {names([one])}", len(self.windows))
            for index, window in enumerate(windows):
                if one.name == "candidate":
                    self.scores["candidate"].append(one.score_base_tokens(window))
                    continue
                newest = self.scores["candidate"][index].context_tokens
                for name, kept in (("baseline", None), ("prompt_cut", newest)):
                    found = score(one.generator.logits, one.base_tokenizer, window, newest=kept)
                    self.scores[name].append(replace(one.finite(found), log_probs=None))

    def summarise(self, result: Result, baseline: Contender, candidate: Contender) -> None:
        """See `Metric.summarise`."""
        settings, scores = self.job.settings, self.scores
        size = settings.quality.compression_context_bytes + settings.quality.compression_bytes
        result.put("samples.compression", score_rows(self.windows, scores))
        if not self.job.changes_vocabulary:
            result.missing(NAME, SAME)
        elif settings.quality.compression_windows == 0:
            result.missing(NAME, "quality.compression_windows=0")
        elif len(self.windows) < 2:
            result.missing(
                NAME,
                f"the test documents hold fewer than 2 stretches of {size} bytes: use a larger "
                "corpus",
            )
        else:
            change = difference(scores["prompt_cut"], scores["candidate"], settings.seed)
            tokens = {
                name: sum(one.context_tokens for one in found) for name, found in scores.items()
            }
            shorter = tokens["candidate"] < tokens["baseline"]  # else the difference is rounding
            result.put(
                NAME,
                {
                    "bits_per_byte": {
                        **{name: rate(found) for name, found in scores.items()},
                        "difference": change,
                    },
                    "tokens": tokens,
                    "beats_control": shorter and change["high"] < 0,
                    "windows": len(self.windows),
                },
            )


def compression_windows(documents: Sequence[Document], quality: QualityConfig) -> list[Window]:
    """Return `quality.compression_windows` windows of full size, or as many as there are."""
    size = quality.compression_context_bytes + quality.compression_bytes
    least = quality.compression_bytes - LONGEST_CHARACTER
    windows = windows_of(documents, size, quality.compression_context_bytes)
    found = [window for window in windows if window.scored_bytes > least]
    return evenly(found, min(quality.compression_windows, len(found)))
