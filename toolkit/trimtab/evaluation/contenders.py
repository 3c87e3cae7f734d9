"""The models that are compared, and how each scores and generates."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trimtab.corpus import with_start, without_start
from trimtab.errors import TrimtabError
from trimtab.evaluation.generators import EngineGenerator, Generator, TransformersGenerator
from trimtab.evaluation.marginal_likelihood import marginal_likelihood_nats
from trimtab.evaluation.scoring import Score, score, tokens_of
from trimtab.evaluation.workload import Window
from trimtab.generation import Engine
from trimtab.models.facts import longest_text
from trimtab.models.state import mend_not_finite
from trimtab.stack import AppliedStack
from trimtab.vattention.settings import CacheSettings


class Contender:
    """One of the models compared.

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
    engine : Engine or None
        What scores and generates within `generating`; None where transformers does.
    peak_page_bytes : int
        The most bytes of pages that the KV cache of one of its engines has held.
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
        self.engine: Engine | None = None
        self.peak_page_bytes = 0

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
        with self.running_engine(1, longest_text(self.model.config)) as engine:
            self.engine = engine
            self.generator = EngineGenerator(
                engine, self.model, self.tokenizer, self.output_tokenizer
            )
            try:
                yield
            finally:
                self.engine, self.generator = None, outside

    @contextmanager
    def running_engine(
        self, slots: int, max_len: int, budget: int | None = None
    ) -> Iterator[Engine]:
        """Run an engine with the stack's cache and drafter within the block.

        Parameters
        ----------
        slots, max_len : int
            Texts at a time, and the most tokens of one.
        budget : int, optional
            The most bytes of keys and values, where the stack itself allows more.
        """
        cache = self.stack.cache or CacheSettings()
        limits = [limit for limit in (cache.budget, budget) if limit is not None]
        with Engine(
            self.model,
            self.tokenizer,
            slots=slots,
            max_len=max_len,
            cache=replace(cache, budget=min(limits, default=None)),
            drafter=self.stack.drafter,
            output_tokenizer=self.output_tokenizer,
        ) as engine:
            try:
                yield engine
            finally:
                peak = engine.kv.stats().peak_committed
                self.peak_page_bytes = max(self.peak_page_bytes, peak)

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
        context, text, size = tokens_of(window, self.tokenizer, self.base_tokenizer)
        nats = marginal_likelihood_nats(
            self.model,
            with_start(self.tokenizer, context),
            text,
            self.stack.ngram_tokens,
            samples,
            torch.Generator().manual_seed(seed),
        )
        read = len(without_start(self.tokenizer, context))
        return self.finite(Score(nats, len(text), size, read, None))

    def finite(self, found: Score) -> Score:
        """Return a score, or raise `TrimtabError` where it is no number."""
        if not math.isfinite(found.nats):
            raise TrimtabError(
                f"the {self.name}, a {type(self.model).__name__} in "
                f"{str(self.model.dtype).removeprefix('torch.')}, gives held-out text no finite "
                f"likelihood: {mend_not_finite(self.model)}"
            )
        return found
