"""Collect raw samples from the models that are compared, interleaved where there are two."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from toolkit.config import EvaluateConfig
from toolkit.evaluation.generation import Timing, greedy, replay, static_cache_bytes
from toolkit.evaluation.memory import parameter_bytes, step_bytes
from toolkit.evaluation.quality import Score, divergence, score
from toolkit.evaluation.text import Prompt, Window
from toolkit.progress import track
from toolkit.stack import AppliedStack


@dataclass
class Workload:
    """The text that every model is measured on."""

    windows: list[Window]
    prompts: list[Prompt]


@dataclass
class Side:
    """One of the models compared, and the raw samples taken from it.

    Attributes
    ----------
    stack : AppliedStack or None
        The methods at work on it; None for the unmodified model.
    scores : list of Score
        One a window.
    divergences : list of float
        KL from the baseline per window, in nats, where both were scored together.
    texts : list of str
        One greedy continuation a prompt.
    timings : list of Timing
        Repeats in order, prompts within.
    static_bytes : int
        What a static cache holds for the generation whose cache is the largest.
    parameter_bytes, step_bytes : int
        Bytes of the parameters, and bytes of weights that one decode step reads.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    stack: AppliedStack | None = None
    scores: list[Score] = field(default_factory=list)
    divergences: list[float] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    timings: list[Timing] = field(default_factory=list)
    static_bytes: int = 0
    parameter_bytes: int = 0
    step_bytes: int = 0

    def recording(self) -> AbstractContextManager[None]:
        """Have the methods at work, where there are any, count what they do."""
        return self.stack.recording() if self.stack else nullcontext()


def measure(sides: Sequence[Side], work: Workload, config: EvaluateConfig, quality: bool) -> None:
    """Run the whole workload on every side and add the samples to it.

    Two sides take turns window by window and prompt by prompt, and who goes first alternates;
    with one side alone there is nothing to interleave.

    Parameters
    ----------
    quality : bool
        Whether likelihoods mean anything for these weights.
    """
    for side in sides:
        side.parameter_bytes = parameter_bytes(side.model)
    names = " and ".join(side.name for side in sides)
    if quality:
        for window in track(work.windows, f"Quality: {names}", len(work.windows)):
            _score(sides, window)
    for prompt in track(work.prompts, f"Greedy generation: {names}", len(work.prompts)):
        for side in sides:
            with side.recording():
                text = greedy(side.model, side.tokenizer, prompt, config.generation.new_tokens)
            side.texts.append(text)
    _time(sides, work, config)
    for side in track(sides, "Static cache", len(sides)):
        side.step_bytes = step_bytes(side.model)
        if side.stack:
            side.step_bytes += sum(part.extra_step_bytes() for part in side.stack.members)
        largest = max(range(len(work.prompts)), key=lambda index: side.timings[index].live_bytes)
        side.static_bytes = static_cache_bytes(
            side.model, side.tokenizer, work.prompts[largest], config.generation.new_tokens
        )


def _score(sides: Sequence[Side], window: Window) -> None:
    scores = []
    for side in sides:
        with side.recording():
            scores.append(score(side.model, side.tokenizer, window))
    if len(sides) == 2 and sides[0].tokenizer is sides[1].tokenizer:
        sides[1].divergences.append(divergence(scores[0], scores[1]))
    for side, found in zip(sides, scores, strict=True):
        side.scores.append(replace(found, log_probs=None))


def _time(sides: Sequence[Side], work: Workload, config: EvaluateConfig) -> None:
    rounds = config.speed.warmup + config.speed.repeats
    jobs = list(itertools.product(range(rounds), range(len(work.prompts))))
    names = " and ".join(side.name for side in sides)
    for number, index in track(jobs, f"Timing: {names}", len(jobs)):
        for side in sides if (number + index) % 2 == 0 else reversed(sides):
            timing = replay(side.model, side.tokenizer, work.prompts[index])
            if number >= config.speed.warmup:
                side.timings.append(timing)
