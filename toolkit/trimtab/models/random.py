"""Models with random weights, in shapes that are shipped, over a tokenizer of plain bytes."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from trimtab.models.draws import DrawingFrom
from trimtab.models.shapes import shape_of

SPECIALS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}


def random_model(
    name: str, seed: int, device: torch.device, dtype: torch.dtype
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return a model of the shape `name` with random weights, and a byte tokenizer.

    Raises
    ------
    ConfigError
        If no shape has that name.
    """
    shape = shape_of(name)
    tokenizer = byte_tokenizer()
    config = AutoConfig.for_model(
        **shape,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    generator = torch.Generator(device).manual_seed(seed)
    with torch.device(device), DrawingFrom(generator):
        return AutoModelForCausalLM.from_config(config, dtype=dtype), tokenizer


def byte_tokenizer() -> PreTrainedTokenizerBase:
    """Return a tokenizer with one token for each byte of UTF-8, and three special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIALS)
