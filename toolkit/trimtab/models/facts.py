"""What follows from a model's config for those who run the model."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

import torch
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from trimtab.arguments import shown
from trimtab.errors import MisfitError, TrimtabError
from trimtab.models.adapter import head_shape

# Settings of models whose layers keep something else than their own keys and values.
OTHER_CACHES = (
    "is_encoder_decoder", "add_cross_attention", "kv_lora_rank", "num_kv_shared_layers",
)  # fmt: skip
POSITIONS = "max_position_embeddings", "max_seq_len"  # the latter is MPT's


def final_softcap(config: Any) -> float | None:
    """Return the bound of the logits, which a model with one bends them to by a tanh.

    Gemma 2 has one (arXiv 2408.00118); None where the logits are not bounded.
    """
    cap: float | None = getattr(config, "final_logit_softcapping", None)
    return cap


def longest_text(config: Any) -> int:
    """Return the most tokens whose positions do not depend on the other texts of a forward pass.

    LongRoPE has a second set of frequencies for long texts. It applies them to the whole pass as
    soon as one position exceeds the original length, to short texts in the same pass too, and the
    keys already in the cache keep the first set. A model without a limit, as with ALiBi
    (arXiv 2108.12409), has `sys.maxsize`.
    """
    config = config.get_text_config(decoder=True)
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope, *(kind for kind in rope.values() if isinstance(kind, dict))]
    original = [
        kind["original_max_position_embeddings"]
        for kind in kinds
        if kind.get("rope_type") == "longrope"
    ]
    limits = (getattr(config, name, None) for name in POSITIONS)
    return int(min([*(limit for limit in limits if limit and limit > 0), *original, sys.maxsize]))


def require_known_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Iterable[str] = ()
) -> None:
    """Refuse a tokenizer with tokens that the model's embedding has no row for.

    Special tokens that no text begins or ends with may be among them, as in Gemma 3.

    Parameters
    ----------
    texts : iterable of str
        What is going to be read: refused too where it holds one of those special tokens.

    Raises
    ------
    MisfitError
    """
    embedding: Any = model.get_input_embeddings()
    rows = len(embedding.weight)
    named = {tokenizer.bos_token_id, tokenizer.eos_token_id}
    special = {
        index: token.content
        for index, token in tokenizer.added_tokens_decoder.items()
        if token.special and index >= rows
    }
    unused = special.keys() - named
    known = tokenizer.get_vocab().values()
    if unknown := [index for index in known if index >= rows and index not in unused]:
        raise MisfitError(
            f"the tokenizer has the token {tokenizer.convert_ids_to_tokens(max(unknown))!r} with "
            f"the id {max(unknown)}, and the embedding of {type(model).__name__} has {rows} rows: "
            "load the model's own tokenizer, or call model.resize_token_embeddings"
        )
    if not unused:
        return
    for text in texts:
        if found := next((token for token in special.values() if token in text), None):
            raise MisfitError(
                f"a text holds {found!r}, a token that the embedding of {type(model).__name__} has "
                "no row for: take it out of the text, or call model.resize_token_embeddings"
            )


def require_positions(config: PreTrainedConfig, tokens: int, setting: str) -> None:
    """Refuse texts of that many tokens where the model has positions for fewer.

    Parameters
    ----------
    setting : str
        What sets their length, as typed on the command line.

    Raises
    ------
    MisfitError
    """
    room = longest_text(config)
    if tokens > room:
        raise MisfitError(
            f"{setting}: a text has {tokens} tokens, and the model has positions for {room}; "
            "make it shorter"
        )


@dataclass(frozen=True)
class CacheShape:
    """The shape of what a model's attention keeps, equal in all layers except for the window.

    Parameters
    ----------
    owner : str
        Name of the config's class.
    windows : tuple of (int or None)
        By layer, the most tokens that a query sees; None if it sees all.
    kv_heads, head_dim : int
    """

    owner: str
    windows: tuple[int | None, ...]
    kv_heads: int
    head_dim: int

    @classmethod
    def of(cls, config: PreTrainedConfig) -> Self:
        """Return the shape for a model's config.

        Raises
        ------
        TrimtabError
            If it is no config.
        MisfitError
            If layers keep anything but keys and values of their own tokens, compress them, or
            differ in shape.
        """
        if not isinstance(config, PreTrainedConfig):
            raise TrimtabError(
                f"config={shown(config)}: expected the config of a model, model.config"
            )
        config = config.get_text_config(decoder=True)
        owner = type(config).__name__
        for setting in OTHER_CACHES:
            if found := getattr(config, setting, None):
                raise MisfitError(
                    f"{owner} with {setting}={found} is not supported by the virtual cache, which "
                    "holds plain self-attention, separately for every layer; use DynamicCache"
                )
        layers = DynamicCache(config=config).layers
        for index, layer in enumerate(layers):
            if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
                raise MisfitError(
                    f"{owner} is not supported by the virtual cache, which holds full and sliding "
                    f"attention only: layer {index} has a {type(layer).__name__}; use DynamicCache"
                )
        try:
            shapes = [head_shape(one) for one in getattr(config, "per_layer_config", [config])]
        except AttributeError as error:
            raise MisfitError(
                f"{owner} is not supported by the virtual cache: its layers have no attention heads"
            ) from error
        heads = {(shape.kv_heads, shape.head_dim) for shape in shapes}
        if len(heads) > 1:
            raise MisfitError(
                f"{owner} is not supported by the virtual cache, whose layers are alike: it has "
                f"layers with (kv_heads, head_dim) = {sorted(heads)}; use DynamicCache"
            )
        windows = tuple(getattr(layer, "sliding_window", None) for layer in layers)
        return cls(owner, windows, *heads.pop())

    def token_bytes(self, dtype: torch.dtype) -> int:
        """Return the bytes of the keys and values of a token, in all layers."""
        return 2 * len(self.windows) * self.kv_heads * self.head_dim * dtype.itemsize
