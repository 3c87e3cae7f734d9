"""The models that are compared, and the raw samples taken from them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trimtab.corpus import encode
from trimtab.errors import TrimtabError
from trimtab.evaluation.cache_memory import CacheKind, CacheMemory
from trimtab.evaluation.generators import EngineGenerator, Generator, TransformersGenerator
from trimtab.evaluation.marginal_likelihood import marginal_likelihood_nats
from trimtab.evaluation.scoring import Score, score, with_start
from trimtab.evaluation.timing import Timing
from trimtab.evaluation.workload import Window
from trimtab.generation import Engine, EngineStats
from trimtab.models.facts import longest_text
from trimtab.stack import AppliedStack


@dataclass
class QualitySamples:
    """What a model makes of windows, each list in their order, and of prompts.

    Attributes
    ----------
    windows, out_of_domain : list of Score
        In the tokens that the model reads and writes.
    base_tokens : list of Score
        The same windows, the text in base tokens and the contexts in the tokenizer of prompts:
        only where the vocabulary changed.
    compression : list of Score
        The text after prompts to be compressed, scored in the same way.
    whole_prompt, prompt_cut : list of Score
        Of the baseline: the same text after the whole prompt, and after one whose oldest tokens
        are cut, so that as many are left as the candidate reads.
    canonical, marginal : list of Score
        Of the candidate: the text in its own tokens, as the tokenizer writes it, and over all
        its tokenizations.
    divergences : list of float
        KL from the baseline per window, in nats, where both were scored together.
    texts : list of str
        One greedy continuation a prompt.
    """

    windows: list[Score] = field(default_factory=list)
    out_of_domain: list[Score] = field(default_factory=list)
    base_tokens: list[Score] = field(default_factory=list)
    compression: list[Score] = field(default_factory=list)
    whole_prompt: list[Score] = field(default_factory=list)
    prompt_cut: list[Score] = field(default_factory=list)
    canonical: list[Score] = field(default_factory=list)
    marginal: list[Score] = field(default_factory=list)
    divergences: list[float] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)


@dataclass
class SpeedSamples:
    """How long a model takes, and what it holds in memory.

    Attributes
    ----------
    timings : list of Timing
        Repeats in order, prompts within.
    engine : EngineStats or None
        What the engine did that generated; None where transformers did.
    decode_step : str
        What ran the engine's decode steps.
    unread_head_bytes : int
        See `Engine.unread_head_bytes`.
    caches : dict of CacheKind to CacheMemory
        What transformers' caches hold for the candidate's largest timed generation.
    parameters, parameter_bytes, step_bytes : int
        The number of the parameters, their bytes, and bytes of weights that one decode step reads.
    """

    timings: list[Timing] = field(default_factory=list)
    engine: EngineStats | None = None
    decode_step: str = ""
    unread_head_bytes: int = 0
    caches: dict[CacheKind, CacheMemory] = field(default_factory=dict)
    parameters: int = 0
    parameter_bytes: int = 0
    step_bytes: int = 0


class Contender:
    """One of the models compared, and the raw samples taken from it.

    Parameters
    ----------
    name : str
        ``baseline`` or ``candidate``.
    model : PreTrainedModel
    base_tokenizer : PreTrainedTokenizerBase
        The unmodified model's.
    stack : AppliedStack, optional
        The methods at work on it; the empty stack where None.

    Attributes
    ----------
    generator : Generator
        What scores and generates: transformers, unless the stack needs the engine and `generating`
        has it run.
    quality : QualitySamples
    speed : SpeedSamples
    """

    def __init__(
        self,
        name: str,
        model: PreTrainedModel,
        base_tokenizer: PreTrainedTokenizerBase,
        stack: AppliedStack | None = None,
    ) -> None:
        self.name, self.model, self.base_tokenizer = name, model, base_tokenizer
        self.stack = stack or AppliedStack(base_tokenizer, base_tokenizer)
        self.generator: Generator = TransformersGenerator(
            model, self.tokenizer, self.output_tokenizer
        )
        self.quality, self.speed = QualitySamples(), SpeedSamples()

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of prompts."""
        return self.stack.tokenizer

    @property
    def output_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of what the model generates."""
        return self.stack.output_tokenizer

    @property
    def changes_vocabulary(self) -> bool:
        """Whether prompts or generated text are in other tokens than the unmodified model's."""
        tokenizers = self.tokenizer, self.output_tokenizer
        return any(tokenizer is not self.base_tokenizer for tokenizer in tokenizers)

    @contextmanager
    def generating(self) -> Iterator[None]:
        """Have the engine score and generate within the block, where the stack needs it."""
        if not self.stack.needs_engine:
            yield
            return
        outside = self.generator
        with Engine(
            self.model,
            self.tokenizer,
            slots=1,
            max_len=longest_text(self.model.config),
            cache=self.stack.cache,
            drafter=self.stack.drafter,
            output_tokenizer=self.output_tokenizer,
        ) as engine:
            self.generator = EngineGenerator(
                engine, self.model, self.tokenizer, self.output_tokenizer
            )
            try:
                yield
            finally:
                self.generator, self.speed.engine = outside, engine.stats
                self.speed.decode_step = engine.decode_step
                self.speed.unread_head_bytes = engine.unread_head_bytes

    def score(self, window: Window) -> Score:
        """Score a window as the model reads and writes it."""
        found = score(self.generator.logits, self.tokenizer, window, self.output_tokenizer)
        return self.finite(found)

    def score_base_tokens(self, window: Window) -> Score:
        """Score a window's text in base tokens, its context in the tokenizer of prompts."""
        with self.stack.base_output():
            found = score(self.generator.logits, self.tokenizer, window, self.base_tokenizer)
        return replace(self.finite(found), log_probs=None)

    def score_all_tokenizations(self, window: Window, samples: int, seed: int) -> Score:
        """Score a window's text over all its tokenizations, see `marginal_likelihood_nats`."""
        context = encode(self.tokenizer, window.context)
        text = encode(self.base_tokenizer, window.text)
        nats = marginal_likelihood_nats(
            self.model,
            with_start(self.tokenizer, context),
            text,
            self.stack.ngram_tokens,
            samples,
            torch.Generator().manual_seed(seed),
        )
        return self.finite(Score(nats, len(text), window.scored_bytes, len(context), None))

    def finite(self, found: Score) -> Score:
        """Return a score, or raise `TrimtabError` where it is no number."""
        if not math.isfinite(found.nats):
            raise TrimtabError(
                f"the {self.name}, a {type(self.model).__name__} in "
                f"{str(self.model.dtype).removeprefix('torch.')}, gives held-out text no finite "
                "likelihood: its activations overflow, or its weights are damaged; load it with "
                "model.dtype=float32 or bfloat16"
            )
        return found
