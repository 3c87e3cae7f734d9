"""The models that are compared, the text they are compared on, and the samples taken."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trimtab.corpus import encode
from trimtab.evaluation import generation, on_engine
from trimtab.evaluation.cache_memory import CacheKind, CacheMemory
from trimtab.evaluation.marginal import marginal_nats
from trimtab.evaluation.quality import Predict, Score, behind_start, predicting, score
from trimtab.evaluation.text import Prompt, Window
from trimtab.evaluation.timing import Timing
from trimtab.generation import Engine, EngineStats
from trimtab.models.facts import longest_text
from trimtab.stack import AppliedStack


@dataclass
class Workload:
    """The text that every model is measured on.

    Attributes
    ----------
    windows, prompts : list
        Held-out text.
    compression : list of Window
        Held-out text whose context is the prompt to be compressed.
    canary : list of Window
        Text of another domain.
    marginal : list of Window
        Those of `compression` that are also scored in all their segmentations.
    """

    windows: list[Window]
    prompts: list[Prompt]
    compression: list[Window] = field(default_factory=list)
    canary: list[Window] = field(default_factory=list)
    marginal: list[Window] = field(default_factory=list)


@dataclass
class Side:
    """One of the models compared, and the raw samples taken from it.

    Attributes
    ----------
    base_tokenizer : PreTrainedTokenizerBase
        The unmodified model's.
    stack : AppliedStack or None
        The methods at work on it; None for the unmodified model.
    scores, canary : list of Score
        One a window.
    base_scores, compression : list of Score
        The same windows, and the prompts to be compressed, with contexts in the tokenizer of
        prompts and the text in base tokens: of a model whose vocabulary changed.
    whole, prompt_cut : list of Score
        Prompts to be compressed as the unmodified model reads them, and with their oldest tokens
        cut so that as many are left as the other side has.
    canonical, marginal : list of Score
        Prompts and continuations in the candidate's own tokens: the continuation as the tokenizer
        has it, and in all its segmentations.
    divergences : list of float
        KL from the baseline per window, in nats, where both were scored together.
    texts : list of str
        One greedy continuation a prompt.
    timings : list of Timing
        Repeats in order, prompts within.
    engine : Engine or None
        What reads and generates within `generating`, where the stack brings one.
    engine_stats : EngineStats or None
        What that engine did.
    caches : dict of CacheKind to CacheMemory
        What transformers' caches hold for the candidate's largest timed generation.
    parameter_bytes, step_bytes : int
        Bytes of the parameters, and bytes of weights that one decode step reads.
    """

    name: str
    model: PreTrainedModel
    base_tokenizer: PreTrainedTokenizerBase
    stack: AppliedStack | None = None
    scores: list[Score] = field(default_factory=list)
    canary: list[Score] = field(default_factory=list)
    base_scores: list[Score] = field(default_factory=list)
    compression: list[Score] = field(default_factory=list)
    canonical: list[Score] = field(default_factory=list)
    marginal: list[Score] = field(default_factory=list)
    whole: list[Score] = field(default_factory=list)
    prompt_cut: list[Score] = field(default_factory=list)
    divergences: list[float] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    timings: list[Timing] = field(default_factory=list)
    engine: Engine | None = None
    engine_stats: EngineStats | None = None
    caches: dict[CacheKind, CacheMemory] = field(default_factory=dict)
    parameter_bytes: int = 0
    step_bytes: int = 0

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of prompts."""
        return self.stack.tokenizer if self.stack else self.base_tokenizer

    @property
    def output_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of what the model generates."""
        return self.stack.output_tokenizer if self.stack else self.base_tokenizer

    @property
    def changes_vocabulary(self) -> bool:
        """Whether prompts or generated text are in other tokens than the unmodified model's."""
        tokenizers = self.tokenizer, self.output_tokenizer
        return any(tokenizer is not self.base_tokenizer for tokenizer in tokenizers)

    @property
    def _predict(self) -> Predict:
        return predicting(self.model) if self.engine is None else self.engine.logits

    def score(self, window: Window) -> Score:
        """Score a window as the model reads and writes it."""
        return score(self._predict, self.tokenizer, window, self.output_tokenizer)

    def score_base_tokens(self, window: Window) -> Score:
        """Score a window's text in base tokens behind its context in the prompts' tokenizer."""
        assert self.stack is not None
        with self.stack.base_output():
            found = score(self._predict, self.tokenizer, window, self.base_tokenizer)
        return replace(found, log_probs=None)

    def score_marginal(self, window: Window, samples: int, seed: int) -> Score:
        """Score a window's text in all its segmentations, see `marginal_nats`."""
        assert self.stack is not None
        context = encode(self.tokenizer, window.context)
        text = encode(self.base_tokenizer, window.text)
        nats = marginal_nats(
            self.model,
            behind_start(self.tokenizer, context),
            text,
            self.stack.ngram_tokens,
            samples,
            torch.Generator().manual_seed(seed),
        )
        return Score(nats, len(text), window.scored_bytes, len(context), None)

    @contextmanager
    def generating(self) -> Iterator[None]:
        """Have the stack's engine, where it brings one, read and generate within the block."""
        if self.stack is None or not self.stack.needs_engine:
            yield
            return
        with Engine(
            self.model,
            self.tokenizer,
            slots=1,
            max_len=longest_text(self.model.config),
            cache=self.stack.cache,
            drafter=self.stack.drafter,
            output_tokenizer=self.output_tokenizer,
        ) as self.engine:
            try:
                yield
            finally:
                self.engine_stats = self.engine.stats
                self.engine = None

    def greedy(self, prompt: Prompt, new_tokens: int) -> str:
        """Return the text the model itself continues the prompt with."""
        arguments = self.model, self.tokenizer, prompt, new_tokens, self.output_tokenizer
        if self.engine is None:
            return generation.greedy(*arguments)
        return on_engine.greedy(self.engine, *arguments)

    def replay(self, prompt: Prompt) -> Timing:
        """Time the generation of the text that really follows the prompt."""
        arguments = self.tokenizer, prompt, self.output_tokenizer
        if self.engine is None:
            return generation.replay(self.model, *arguments)
        return on_engine.replay(self.engine, *arguments)

    def recording(self) -> AbstractContextManager[None]:
        """Have the methods at work, where there are any, count what they do."""
        return self.stack.recording() if self.stack else nullcontext()
