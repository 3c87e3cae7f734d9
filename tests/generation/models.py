"""Tiny models, prompts, and what transformers generates for them."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from tests.conftest import SHAPES
from tests.models.contract import draw
from trimtab.capabilities import Drafter
from trimtab.generation import Engine
from trimtab.models.random import byte_tokenizer
from trimtab.models.sources import DType
from trimtab.vattention.settings import CacheSettings

# One token per byte, and none that ends a text: a random model would soon choose it.
TOKENIZER = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer().backend_tokenizer)
SLIDING = "sliding_attention"
# Windows, shorter than the texts, of models without one by default, and what else a config changes.
CHANGED: dict[str, tuple[str, dict[str, Any]]] = {
    "mistral, window": ("tiny-mistral", {"sliding_window": 8}),
    "qwen2, window": (
        "tiny-qwen2",
        {
            "use_sliding_window": True,
            "sliding_window": 6,
            "layer_types": ["full_attention", SLIDING, SLIDING],
        },
    ),
    "phi3, window": ("tiny-phi3", {"sliding_window": 8}),
    "gpt2, scaled by layer": ("tiny-gpt2", {"scale_attn_by_inverse_layer_idx": True}),
}
VARIANTS = {shape.removeprefix("tiny-"): (shape, dict[str, Any]()) for shape in SHAPES} | CHANGED


def model_of(variant: str = "llama", dtype: DType = DType.float32) -> PreTrainedModel:
    """Return a tiny model with random weights, norms and biases."""
    shape, changes = VARIANTS[variant]
    return changed(shape, changes, dtype)


def changed(shape: str, changes: Mapping[str, Any], dtype: DType) -> PreTrainedModel:
    """Return a tiny model of a shape whose config has these changes."""
    drawn = draw(shape, dtype, tied=True).model
    config = copy.deepcopy(drawn.config)
    for name, value in changes.items():
        setattr(config, name, value)
    model = AutoModelForCausalLM.from_config(config, dtype=drawn.dtype)
    model.load_state_dict(drawn.state_dict())
    model.eval().requires_grad_(False)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def prompts_of(*sizes: int) -> list[list[int]]:
    generator = random.Random(sum(sizes))
    return [[generator.randrange(256) for _ in range(size)] for size in sizes]


def engine_for(
    model: PreTrainedModel,
    slots: int = 3,
    max_len: int = 128,
    drafter: Drafter | None = None,
    output_tokenizer: PreTrainedTokenizerBase | None = None,
    **cache: Any,
) -> Engine:
    """Return an engine; `cache` holds fields of `CacheSettings`.

    Pages are small, or on a GPU the driver's.
    """
    page = 4096 if model.device.type == "cpu" else None
    return Engine(
        model,
        TOKENIZER,
        slots=slots,
        max_len=max_len,
        cache=CacheSettings(**{"prefill_chunk": 8, "page_group": page, **cache}),
        drafter=drafter,
        output_tokenizer=output_tokenizer,
    )


def stock(model: PreTrainedModel, prompt: list[int], new_tokens: int, **options: Any) -> list[int]:
    """Return the greedy continuation of a prompt by stock `generate`, on a DynamicCache."""
    ids = torch.tensor([prompt], device=model.device)
    output: Any = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=new_tokens,
        **options,
    )
    tokens: list[int] = output[0, len(prompt) :].tolist()
    return tokens


def forcing(text: str) -> Callable[[int], LogitsProcessorList]:
    """Return processors that let only the tokens of one text through."""
    tokens = TOKENIZER(text)["input_ids"]

    def processors(index: int) -> LogitsProcessorList:
        place = iter(tokens)

        def only(input_ids: Tensor, scores: Tensor) -> Tensor:
            forced = torch.full_like(scores, -torch.inf)
            forced[:, next(place)] = 0
            return forced

        return LogitsProcessorList([only])

    return processors


class Recorder:
    """Records the logits from which the tokens of every sequence were chosen."""

    def __init__(self) -> None:
        self.logits: dict[int, list[Tensor]] = {}

    def __call__(self, index: int) -> LogitsProcessorList:
        found = self.logits[index] = []

        def note(input_ids: Tensor, scores: Tensor) -> Tensor:
            found.append(scores[0].clone())
            return scores

        return LogitsProcessorList([note])

    def of(self, index: int) -> Tensor:
        """Return the logits of a sequence's last run, of shape [tokens, vocabulary]."""
        return torch.stack(self.logits[index])
