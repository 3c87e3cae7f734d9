"""Models with random weights, in shapes that are shipped, over a tokenizer of plain bytes."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import torch
from omegaconf import OmegaConf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from trimtab.errors import ConfigError

SPECIALS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}


def shapes() -> dict[str, dict[str, Any]]:
    """Return the shipped shapes by name, as arguments of ``AutoConfig.for_model``."""
    text = files("trimtab.models").joinpath("shapes.yaml").read_text("utf-8")
    loaded = OmegaConf.to_container(OmegaConf.create(text))
    assert isinstance(loaded, dict)
    return {str(name): shape for name, shape in loaded.items()}


def random_model(
    name: str, seed: int, device: torch.device, dtype: torch.dtype
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return a model of the shape `name` with random weights, and a byte tokenizer.

    Raises
    ------
    ConfigError
        If no shape has that name.
    """
    known = shapes()
    if name not in known:
        raise ConfigError("model.config", name, f"expected one of {', '.join(known)}")
    tokenizer = byte_tokenizer()
    config = AutoConfig.for_model(
        **known[name],
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.device(device):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=dtype), tokenizer


def byte_tokenizer() -> PreTrainedTokenizerBase:
    """Return a tokenizer with one token for each byte of UTF-8, and three special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIALS)
