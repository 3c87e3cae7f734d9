"""Generation with transformers' own loop: free, for comparison, and of a given text, for timing."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.generation.streamers import BaseStreamer

from trimtab.corpus import encode
from trimtab.evaluation.cache_memory import CacheKind, CacheMemory, cache_bytes, cache_memory
from trimtab.evaluation.text import Prompt
from trimtab.evaluation.timing import Timing
from trimtab.models.adapter import module_device


class Replay(LogitsProcessor):
    """Let only the next token of a given continuation through.

    Behind its end anything may come: a draft that reaches there is cut off by `generate`.
    """

    def __init__(self, prompt_tokens: int, continuation: list[int]) -> None:
        self._prompt_tokens = prompt_tokens
        self._continuation = continuation

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        position = input_ids.shape[1] - self._prompt_tokens
        if position >= len(self._continuation):
            return scores
        token = self._continuation[position]
        forced = torch.full_like(scores, -torch.inf)
        forced[:, token] = 0
        return forced


class Clock(BaseStreamer):
    """Note when `generate` hands out tokens, and how many; the first call brings the prompt."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.tokens: list[int] = []

    def put(self, value: Tensor) -> None:
        self.times.append(time.perf_counter())
        self.tokens.append(value.numel())

    def end(self) -> None:
        pass


def replay(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    output_tokenizer: PreTrainedTokenizerBase | None = None,
) -> Timing:
    """Time the generation of the text that really follows the prompt.

    Every model and every tokenizer then produces the same bytes, so that times compare: freely
    generated texts differ in length and in words, and their times with them.

    Parameters
    ----------
    tokenizer, output_tokenizer : PreTrainedTokenizerBase
        Of the prompt, and of the text behind it; the prompt's where None.
    """
    continuation = encode(output_tokenizer or tokenizer, prompt.continuation)
    clock = Clock()
    prompt_tokens = len(prompt_ids(tokenizer, prompt))
    started = time.perf_counter()
    output = _generate(
        model,
        tokenizer,
        prompt,
        len(continuation),
        streamer=clock,
        logits_processor=LogitsProcessorList([Replay(prompt_tokens, continuation)]),
    )
    total = time.perf_counter() - started
    _, first, *later = clock.times
    live, committed = cache_bytes(output.past_key_values)
    return Timing(
        first=first - started,
        gaps=[after - before for before, after in zip([first, *later], later, strict=False)],
        step_tokens=clock.tokens[1:],
        total=total,
        prompt_tokens=prompt_tokens,
        new_tokens=len(continuation),
        prompt_size=len(prompt.text.encode()),
        size=len(prompt.continuation.encode()),
        live_bytes=live,
        committed_bytes=committed,
        reserved_bytes=committed,
    )


def greedy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    new_tokens: int,
    output_tokenizer: PreTrainedTokenizerBase | None = None,
) -> str:
    """Return the text the model itself continues the prompt with."""
    output = _generate(model, tokenizer, prompt, new_tokens)
    prompt_tokens = len(prompt_ids(tokenizer, prompt))
    decode = (output_tokenizer or tokenizer).decode
    text = decode(output.sequences[0, prompt_tokens:], skip_special_tokens=True)
    assert isinstance(text, str)
    return text


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """Return the tokens of a prompt, special ones included."""
    ids: list[int] = tokenizer(prompt.text)["input_ids"]
    return ids


def transformers_cache(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    new_tokens: int,
    kind: CacheKind,
) -> CacheMemory:
    """Return what one of transformers' caches holds at the end of a generation."""
    options: dict[str, Any] = {}
    if kind is CacheKind.static:
        # A model that generated a longer text before would get a cache of that length again.
        vars(model).pop("_previous_max_cache_length", None)
        options = {"cache_implementation": "static", "disable_compile": True}

    def make() -> Any:
        return _generate(model, tokenizer, prompt, new_tokens, **options).past_key_values

    return cache_memory(make, module_device(model.get_input_embeddings()))


@torch.inference_mode()
def _generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    new_tokens: int,
    **options: Any,
) -> Any:
    device = module_device(model.get_input_embeddings())
    ids = torch.tensor([prompt_ids(tokenizer, prompt)], device=device)
    generate: Any = model.generate
    return generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,  # the model's own may ask for one, and the engine has none
        no_repeat_ngram_size=0,
        min_new_tokens=new_tokens,
        max_new_tokens=new_tokens,
        pad_token_id=tokenizer.pad_token_id
        if tokenizer.pad_token_id is not None
        else tokenizer.eos_token_id,
        return_dict_in_generate=True,
        **options,
    )
