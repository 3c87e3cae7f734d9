"""Generation by transformers' own loop, with what comes out as the engine has it."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

from trimtab.generation.request import Completion, Finish, allowed
from trimtab.generation.sampling import Sampler, Sampling
from trimtab.generation.stopping import Detokenizer, stop_tokens
from trimtab.models.adapter import module_device
from trimtab.models.predictions import require_finite
from trimtab.models.view import generating_by

KEPT = (
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "_from_model_config",
    "transformers_version",
)


def plainly_generating(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, endless: bool = False
) -> PreTrainedModel:
    """Return the model as one whose `generate` follows its arguments and nothing else.

    What a checkpoint's generation config may ask for beside the stop tokens (penalties, forced
    tokens, time limits, ...) our engine does not do; see `set_aside`.

    Parameters
    ----------
    endless : bool
        Whether texts go on after a stop token.
    """
    plain = GenerationConfig(
        eos_token_id=None if endless else sorted(stop_tokens(model, tokenizer)) or None,
        pad_token_id=pad_token(tokenizer),
        use_cache=True,
    )
    return generating_by(model, plain)


def set_aside(model: PreTrainedModel) -> dict[str, Any]:
    """Return what a checkpoint's generation config asks for that nothing generates by here.

    JSON values by the names of the settings, Infinity and NaN as text; defaults, and special
    tokens, are not among them.
    """
    config = model.generation_config
    if config is None:
        return {}
    asked: dict[str, Any] = json.loads(config.to_json_string(), parse_constant=str)
    default = GenerationConfig._get_default_generation_params()
    return {
        name: value
        for name, value in asked.items()
        if name not in KEPT and value is not default.get(name, False) and value != default.get(name)
    }


class Clock(BaseStreamer):
    """Records when `generate` hands out tokens, and how many; the first call brings the prompt."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.tokens: list[int] = []

    def put(self, value: Tensor) -> None:
        self.times.append(time.perf_counter())
        self.tokens.append(value.numel())

    def end(self) -> None:
        pass


class _Reader(StoppingCriteria):
    """Reads what is generated after a prompt, and ends it where the engine would.

    transformers' own stop strings also match across the end of the prompt.

    Parameters
    ----------
    text : Detokenizer
    read : int
        Tokens of the prompt.
    ends : frozenset of int
        Tokens that end a text, and are not part of it.
    """

    def __init__(self, text: Detokenizer, read: int, ends: frozenset[int]) -> None:
        self._text, self._read, self._ends = text, read, ends

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        for token in input_ids[0, self._read :].tolist():
            if token not in self._ends:
                self._text.push(token)
        self._read = input_ids.shape[1]
        return torch.tensor([self._text.stopped], device=input_ids.device)


class _Choice(LogitsProcessor):
    """Has a text go on with what the engine's sampler chooses, by random numbers of its own.

    Predictions that are not finite are refused: a token chosen from them would mean nothing.
    """

    def __init__(self, model: PreTrainedModel, sampler: Sampler) -> None:
        self._model, self._sampler = model, sampler

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Any:
        require_finite(self._model, scores)
        if not self._sampler.plain:  # else `generate` itself takes the largest
            scores[0, self._sampler(input_ids[0].tolist(), scores)] = torch.inf
        return scores


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    output_tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[int],
    index: int,
    max_new_tokens: int,
    room: int,
    sampling: Sampling,
    stop: Sequence[str],
) -> Completion:
    """Return what `model.generate` continues one prompt with.

    Parameters
    ----------
    prompt : sequence of int
        Token ids, at least one.
    index : int
        Of the prompt, for its seed.
    room : int
        The most tokens of the prompt and its continuation.
    stop : sequence of str
        What ends a text before it.

    Raises
    ------
    TrimtabError
        If what the model predicts is not finite.
    """
    device = module_device(model.get_input_embeddings())
    ends = stop_tokens(model, output_tokenizer)
    ids = torch.tensor([list(prompt)], device=device)
    clock = Clock()
    limit, at_limit = allowed(max_new_tokens, room - len(prompt))
    text = Detokenizer(output_tokenizer, stop)
    reader = StoppingCriteriaList([_Reader(text, len(prompt), ends)])
    run: Any = plainly_generating(model, output_tokenizer).generate
    choice = _Choice(model, Sampler(sampling, index, device))
    output = run(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=limit,
        logits_processor=LogitsProcessorList([choice]),
        stopping_criteria=reader,
        streamer=clock,
    )
    tokens = output[0, len(prompt) :].tolist()
    return _completion(tokens, clock.times[1:], len(prompt), text, ends, at_limit)


def pad_token(tokenizer: PreTrainedTokenizerBase) -> Any:
    """Return the token that `generate` may pad with: it wants one, used or not."""
    pad = tokenizer.pad_token_id
    return tokenizer.eos_token_id if pad is None else pad


def _completion(
    tokens: list[int],
    times: list[float],
    prompt_tokens: int,
    text: Detokenizer,
    ends: frozenset[int],
    at_limit: Finish,
) -> Completion:
    text.close()
    finish = Finish.stop if tokens and tokens[-1] in ends else at_limit
    if text.stopped:
        finish = Finish.stop_string
    return Completion(tokens, text.text, finish, prompt_tokens, times, len(tokens), 0)
