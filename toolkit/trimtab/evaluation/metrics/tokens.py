"""What the timed prompts and continuations take in each tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from typing_extensions import TypedDict

from trimtab.evaluation.contenders import Contender
from trimtab.evaluation.display import Chart, Column, Series
from trimtab.evaluation.metrics.latency import Latency, total
from trimtab.evaluation.metrics.metric import Both, Metric
from trimtab.evaluation.result import Result
from trimtab.evaluation.timing import Timing

TOKENS = Series(
    "tokens, prompts and outputs", "tokens.candidate", ",.0f", "less", "tokens.baseline",
    finding="Fewest tokens for the same text: {best}, {value}",
)  # fmt: skip
STEPS = Series(
    "forward passes", "tokens.steps.candidate", ",.0f", "less", "tokens.steps.baseline",
    finding="Fewest forward passes for the same text: {best}, {value}",
)  # fmt: skip


class Count(TypedDict):
    """Counts on the same text, and the share of the baseline's that the candidate saves."""

    baseline: int
    candidate: int
    saving: float


class Tokens(Metric):
    """Tokens and forward passes of the rounds of timed generations that every job has."""

    needs = (Latency,)
    columns = (
        Column("tokens saved", "tokens.saving", ".1%", "of prompts and outputs"),
        Column(
            "steps saved", "tokens.steps.saving", ".1%", "of the forward passes for the same text"
        ),
    )
    charts = (
        Chart(
            "all_methods_token_comparison.png",
            "No stack needs fewer tokens or forward passes for the same text",
            (TOKENS, STEPS),
        ),
    )
    fields: ClassVar[dict[str, Any]] = {
        "tokens.baseline": int,
        "tokens.candidate": int,
        "tokens.saving": float,
        "tokens.prompt": Count,
        "tokens.output": Count,
        "tokens.steps": Count,
        "tokens.per_text": Both[float],
        "tokens.per_byte_of_output": Both[float],
    }

    def summarise(self, result: Result, baseline: Contender, candidate: Contender) -> None:
        """See `Metric.summarise`."""
        settings, latency = self.job.settings, self.job.metric(Latency)
        least = settings.speed.repeats * settings.generation.prompts
        timings = {name: own[:least] for name, own in latency.timings.items()}

        def count(number: Callable[[Timing], int]) -> Count:
            first, second = (sum(map(number, timings[name])) for name in ("baseline", "candidate"))
            return {"baseline": first, "candidate": second, "saving": 1 - second / first}

        def per_byte(own: Sequence[Timing]) -> float:
            return total(own, "new_tokens") / total(own, "size")

        for name, value in count(lambda one: one.prompt_tokens + one.new_tokens).items():
            result.put(f"tokens.{name}", value)
        texts = {name: (total(own, "prompt_tokens") + total(own, "new_tokens")) / least
                 for name, own in timings.items()}  # fmt: skip
        result.put("tokens.per_text", texts)
        result.put("tokens.prompt", count(lambda one: one.prompt_tokens))
        result.put("tokens.output", count(lambda one: one.new_tokens))
        result.put("tokens.steps", count(lambda one: one.steps))
        result.put(
            "tokens.per_byte_of_output",
            {name: per_byte(own) for name, own in timings.items()},
        )
