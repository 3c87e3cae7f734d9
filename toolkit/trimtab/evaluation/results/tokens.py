"""The section `tokens` of result.json."""

from __future__ import annotations

from collections.abc import Callable

from trimtab.evaluation.contenders import Contender
from trimtab.evaluation.results.result import Result, Section, both, total
from trimtab.evaluation.timing import Timing


def tokens_section(result: Result, baseline: Contender, candidate: Contender) -> None:
    """Fill `tokens`: what the timed prompts and continuations take in each tokenizer."""

    def section(count: Callable[[Timing], int]) -> Section:
        found = both(lambda one: sum(map(count, one.timings)), baseline, candidate)
        return {**found, "saving": 1 - found["candidate"] / found["baseline"]}

    result.sections["tokens"] = {
        **section(lambda timing: timing.prompt_tokens + timing.new_tokens),
        "prompt": section(lambda timing: timing.prompt_tokens),
        "output": section(lambda timing: timing.new_tokens),
        "steps": section(lambda timing: timing.steps),
        "per_byte_of_output": both(
            lambda one: total(one, "new_tokens") / total(one, "size"), baseline, candidate
        ),
    }
