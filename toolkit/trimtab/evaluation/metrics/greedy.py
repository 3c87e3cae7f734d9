"""Whether the models continue prompts with the same text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from trimtab.evaluation.contenders import Contender
from trimtab.evaluation.display import Column
from trimtab.evaluation.intervals import Estimate, proportion, ratio
from trimtab.evaluation.job import Job
from trimtab.evaluation.metrics.metric import Metric, Rows, names
from trimtab.evaluation.result import RANDOM_WEIGHTS, Result
from trimtab.evaluation.workload import lengths_of, prompts
from trimtab.progress import track


class Greedy(Metric):
    """How far the greedy continuations of both models agree.

    Attributes
    ----------
    prompts : list of Prompt
    """

    generates = True
    columns = (
        Column(
            "same text",
            "quality.greedy_agreement",
            ".0%",
            "share of the unmodified model's greedy text before the first difference",
        ),
    )
    fields: ClassVar[dict[str, Any]] = {
        "quality.greedy_agreement": Estimate,
        "quality.exact_match": Estimate,
        "samples.texts": Rows,
    }
    RANDOM = f"{RANDOM_WEIGHTS}: what they continue with means nothing"

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        generation = job.settings.generation
        self.prompts = prompts(job.documents, job.tokenizer, generation)
        texts = ((one.text, one.continuation) for one in self.prompts)
        job.require_positions(texts, lengths_of(generation))
        self.texts: dict[str, list[str]] = {"baseline": [], "candidate": []}

    def measure(self, contenders: Sequence[Contender]) -> None:
        """See `Metric.measure`. Counts what the stack reads of the weights, too."""
        new_tokens = self.job.settings.generation.new_tokens
        title = f"Greedy texts: {names(contenders)}"
        for prompt in track(self.prompts, title, len(self.prompts)):
            for one in contenders:
                with one.stack.recording():
                    self.texts[one.name].append(one.generator.greedy(prompt, new_tokens))

    def summarise(self, result: Result, baseline: Contender, candidate: Contender) -> None:
        """See `Metric.summarise`."""
        pairs = list(zip(self.texts["baseline"], self.texts["candidate"], strict=True))
        rows = [
            {
                "document": prompt.document,
                "prompt": prompt.text,
                "baseline": first,
                "candidate": second,
            }
            for prompt, (first, second) in zip(self.prompts, pairs, strict=True)
        ]
        result.put("samples.texts", rows)
        if not self.job.known_weights:
            for name in ("quality.greedy_agreement", "quality.exact_match"):
                result.missing(name, self.RANDOM)
            return
        if candidate.output_tokenizer is not baseline.output_tokenizer:
            # As many of other tokens are a longer or a shorter text, which no text is no part of.
            lengths = [min(map(len, pair)) or None for pair in pairs]
            pairs = [
                (first[:length], second[:length])
                for (first, second), length in zip(pairs, lengths, strict=True)
            ]
        shares = [
            1.0 if first == second else common_prefix(first, second) / max(len(first), len(second))
            for first, second in pairs
        ]
        seed = self.job.settings.seed
        agreement = ratio(shares, [1.0] * len(shares), paired=True, seed=seed)
        result.put("quality.greedy_agreement", agreement)
        same = sum(first == second for first, second in pairs)
        result.put("quality.exact_match", proportion(same, len(pairs)))


def common_prefix(first: str, second: str) -> int:
    """Return the number of characters before the first that differs."""
    for index, (left, right) in enumerate(zip(first, second, strict=False)):
        if left != right:
            return index
    return min(len(first), len(second))
