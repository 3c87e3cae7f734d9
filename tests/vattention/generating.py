"""Tiny models, and what stock `generate` yields with them on various caches."""

from __future__ import annotations

from functools import cache as cached

import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PreTrainedModel

from tests.conftest import SHAPES, random_inputs, tiny
from trimtab.models.shapes import shapes
from trimtab.vattention.cache import VirtualCache

PAGE = 4096
PROMPT = 20
NEW = 14
WINDOW = 8
# Models without a window in their shipped shapes; those of Gemma have one of WINDOW tokens.
WINDOWED = {
    "window-mistral": ("tiny-mistral", {"sliding_window": WINDOW}),
    "window-phi3": ("tiny-phi3", {"sliding_window": WINDOW}),
    "window-qwen2": (
        "tiny-qwen2",
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    ),
}
MODELS = [*SHAPES, *WINDOWED]
# Gemma 2 supports eager attention only.
ATTENTIONS = [
    (name, attention)
    for name in MODELS
    for attention in ("sdpa", "eager")
    if (name, attention) != ("tiny-gemma2", "sdpa")
]
MODES = {
    "sampling": {"do_sample": True, "top_k": 40, "temperature": 2.0},
    "beams": {"num_beams": 3},
    "prompt lookup": {"prompt_lookup_num_tokens": 4},
}
RARE_MODES = {
    "beams that sample": {"num_beams": 2, "do_sample": True},
    "several": {"do_sample": True, "num_return_sequences": 3},
    "prefill in chunks": {"prefill_chunk_size": 6},
}


@cached
def model_of(name: str) -> PreTrainedModel:
    """Return a tiny model that is shared between tests: nothing may change it."""
    if name in SHAPES:
        return tiny(name).model
    shape, settings = WINDOWED[name]
    config = AutoConfig.for_model(**{**shapes()[shape], **settings, "pad_token_id": 0})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).requires_grad_(False).eval()


def make(model: PreTrainedModel, batch: int = 1, max_len: int = 96, **options) -> VirtualCache:
    """Return a cache of small pages, or on a GPU of the driver's."""
    page = PAGE if model.device.type == "cpu" else None
    options = {"page_group": page, "dtype": model.dtype, "device": model.device} | options
    return VirtualCache(model.config, batch=batch, max_len=max_len, **options)


def generate(model: PreTrainedModel, ids: torch.Tensor, cache=None, **options):
    """Return the output of stock `generate`, with logits; ids of 0 are padding."""
    torch.manual_seed(0)
    if cache is None:
        cache = DynamicCache(config=model.config)
    if "min_new_tokens" in options:
        options["max_new_tokens"] = options["min_new_tokens"]
    options = {"do_sample": False, "max_new_tokens": NEW, "pad_token_id": 0} | options
    return model.generate(
        ids,
        attention_mask=(ids != 0).long(),
        past_key_values=cache,
        return_dict_in_generate=True,
        output_logits=True,
        **options,
    )


def prompts(batch: int, tokens: int = PROMPT) -> torch.Tensor:
    """Return prompts of two equal halves, all but the last padded on the left."""
    half = random_inputs(batch, tokens // 2) % 100 + 1
    ids = torch.cat([half, half], dim=1)
    for row in range(batch - 1):
        ids[row, : 2 * row + 3] = 0
    return ids


def assert_same(found, expected) -> None:
    """Assert that the tokens are equal, and the logits up to rounding."""
    torch.testing.assert_close(found.sequences, expected.sequences, rtol=0, atol=0)
    for ours, theirs in zip(found.logits, expected.logits, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
