"""Lossless drafting: transformers' own generation, with n-grams for its assistant."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, PreTrainedModel
from transformers.generation import (
    EosTokenCriteria,
    LogitsProcessorList,
    MaxLengthCriteria,
    MaxTimeCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
    SynthIDTextWatermarkLogitsProcessor,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)
from transformers.generation.candidate_generator import CandidateGenerator

from trimtab.adaptivocab.drafts import Drafts

# Criteria that a draft can be kept clear of, and processors that would remember a rejected one.
CRITERIA = (MaxLengthCriteria, EosTokenCriteria, MaxTimeCriteria, StopStringCriteria)
STATEFUL = (UnbatchedClassifierFreeGuidanceLogitsProcessor, SynthIDTextWatermarkLogitsProcessor)


@dataclass
class DraftCounter:
    """What drafting did, over all calls of `generate`.

    Attributes
    ----------
    calls, drafted : int
        Calls of `generate`, and those of them that drafted.
    steps, generated : int
        Forward passes of the drafted calls, and the tokens that came out of them.
    proposed, accepted : int
        Draft tokens, and those of them that the model generated too.
    """

    calls: int = 0
    drafted: int = 0
    steps: int = 0
    generated: int = 0
    proposed: int = 0
    accepted: int = 0

    @property
    def undrafted(self) -> int:
        """Calls that went on without drafts."""
        return self.calls - self.drafted


class NGramCandidates(CandidateGenerator):
    """Proposes what `drafts` proposes, up to where the text might end.

    A draft holds no special token, leaves room for the token that comes with it, and stops before
    a token that would complete a stop string: transformers looks for those only once a step.

    Parameters
    ----------
    drafts : Drafts
    counter : DraftCounter
    generation_config, stopping_criteria
        As `generate` prepared them.
    """

    def __init__(
        self,
        drafts: Drafts,
        counter: DraftCounter,
        generation_config: GenerationConfig,
        stopping_criteria: StoppingCriteriaList,
    ) -> None:
        self._drafts = drafts
        self._counter = counter
        self._max_length = generation_config.max_length
        self._special: set[int] = set()
        for name in ("_bos_token_tensor", "_eos_token_tensor", "_pad_token_tensor"):
            tokens = getattr(generation_config, name)
            self._special.update([] if tokens is None else tokens.reshape(-1).tolist())
        self._stops = [one for one in stopping_criteria if isinstance(one, StopStringCriteria)]
        self._length = 0

    def get_candidates(self, input_ids: Tensor, **kwargs: Any) -> Any:
        """Return `input_ids`, int64 of shape [1, n], with the draft behind, and no logits."""
        self._length = length = input_ids.shape[1]
        room = max(self._max_length - length - 1, 0)
        draft = self._drafts.propose(input_ids[0, -self._drafts.context :].tolist())[:room]
        candidates = torch.cat([input_ids, input_ids.new_tensor([draft])], dim=1)
        for end, token in enumerate(draft, start=length):
            text = candidates[:, : end + 1]
            if token in self._special or any(stop(text, None).any() for stop in self._stops):
                candidates = candidates[:, :end]
                break
        self._counter.proposed += candidates.shape[1] - length
        return candidates, None

    def update_candidate_strategy(
        self, input_ids: Tensor, scores: Tensor, num_matches: int
    ) -> None:
        """Count a step, after which the text is `input_ids`."""
        self._counter.steps += 1
        self._counter.generated += input_ids.shape[1] - self._length
        self._counter.accepted += input_ids.shape[1] - self._length - 1


class _Drafting:
    """Greedy search and sampling that draft where that changes nothing; a model's class adds it."""

    _drafts: Drafts
    _counter: DraftCounter
    _is_stateful: bool

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        self._counter.calls += 1
        plain: Any = super()
        return plain.generate(*args, **kwargs)

    def _sample(
        self,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **kwargs: Any,
    ) -> Any:
        plain: Any = super()
        arguments = input_ids, logits_processor, stopping_criteria, generation_config
        if self._is_stateful or not _can_draft(*arguments, kwargs):
            return plain._sample(*arguments, **kwargs)
        self._counter.drafted += 1
        config, stops = generation_config, stopping_criteria
        candidates = NGramCandidates(self._drafts, self._counter, config, stops)
        try:
            return plain._assisted_decoding(*arguments, assistant_model=candidates, **kwargs)
        finally:
            # What remembers the tokens it may have to take back cannot serve plain generation.
            for layer in kwargs["past_key_values"].layers:
                if hasattr(layer, "record_past"):
                    layer.record_past = False

    def _get_candidate_generator(self, *args: Any, **kwargs: Any) -> Any:
        if isinstance(kwargs.get("assistant_model"), NGramCandidates):
            return kwargs["assistant_model"]
        plain: Any = super()
        return plain._get_candidate_generator(*args, **kwargs)


def _can_draft(
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    kwargs: dict[str, Any],
) -> bool:
    """Return whether assisted generation gives this call what plain generation would."""
    cache = kwargs.get("past_key_values")
    return (
        input_ids.shape[0] == 1
        and type(cache) is DynamicCache
        and not cache.offloading
        and cache.get_seq_length() == 0
        and kwargs.get("inputs_embeds") is None
        and generation_config.prefill_chunk_size is None
        and not generation_config.is_assistant
        and all(type(one) in CRITERIA for one in stopping_criteria)
        and not any(isinstance(one, STATEFUL) for one in logits_processor)
    )


@contextmanager
def drafting(model: PreTrainedModel, drafts: Drafts) -> Iterator[DraftCounter]:
    """Have `model.generate` draft for the time of the ``with``.

    It returns what it would without: greedy search the same tokens, up to the rounding of a
    forward pass over several tokens instead of one, and sampling tokens of the same distribution.
    A call that assisted generation has no room for runs undrafted: several texts at once, beams,
    a cache that is static, quantized, offloaded or not empty, embeddings for a prompt, a prompt
    read in chunks, criteria of the caller's own; and so does one with an assistant of its own.
    The caller's logits processors must depend on the tokens alone.

    Yields
    ------
    DraftCounter
    """
    kind = type(model)
    counter = DraftCounter()
    names = {"_drafts": drafts, "_counter": counter, "__module__": kind.__module__}
    model.__class__ = type(kind.__name__, (_Drafting, kind), names)
    try:
        yield counter
    finally:
        model.__class__ = kind
