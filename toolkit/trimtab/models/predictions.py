"""What a model must be to be measured as a language model, tried on a few tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from trimtab.errors import MisfitError, TrimtabError
from trimtab.models.adapter import ADAPTERS, module_device
from trimtab.models.state import mend_not_finite

PROBE = 16
"""Tokens that a model is tried on."""
CLOSE = 1e-3  # of the logits' spread: what rounding may change in them
NOT_FINITE = "what the model predicts is not finite"


def probe(model: PreTrainedModel, ids: Sequence[int]) -> Tensor:
    """Return the first `PROBE` tokens, int64 [1, tokens], where the model's embedding is."""
    return torch.tensor([list(ids[:PROBE])], device=module_device(model.get_input_embeddings()))


@torch.inference_mode()
def require_predictions(model: PreTrainedModel, ids: Sequence[int]) -> None:
    """Refuse a model whose predictions are not finite, or depend on later tokens.

    Parameters
    ----------
    ids : sequence of int
        Tokens of a text; the first `PROBE` are read.

    Raises
    ------
    TrimtabError
        If they are not finite; it says what to do.
    MisfitError
        If the model sees later tokens, as those do that fill gaps in a text.
    """
    if len(ids) < 2:
        return
    run: Any = model
    embedding: Any = model.get_input_embeddings()
    text = probe(model, ids)
    half, other = text.shape[1] // 2, text.clone()
    other[:, half:] = (text[:, half:] + 1) % len(embedding.weight)
    found, changed = (run(input_ids=one, use_cache=False).logits[0] for one in (text, other))
    require_finite(model, found)
    before, after = found[:half].float(), changed[:half].float()
    spread = (before - before.mean(-1, keepdim=True)).norm(dim=-1)
    if bool(((before - after).norm(dim=-1) > CLOSE * spread).any()):
        raise MisfitError(
            f"{type(model).__name__} sees later tokens, by which what it predicts before them "
            "differs: expected a decoder-only model, whose attention is causal"
        )


@torch.inference_mode()
def require_cache(model: PreTrainedModel, ids: Sequence[int]) -> None:
    """Refuse a model that does not keep keys and values in every layer.

    Parameters
    ----------
    ids : sequence of int
        Tokens of a text; the first `PROBE` are read.

    Raises
    ------
    MisfitError
        As for recurrent and for linear attention; it lists the architectures that are supported.
    """
    if not ids:
        return
    run: Any = model
    cache = getattr(run(input_ids=probe(model, ids), use_cache=True), "past_key_values", None)
    layers = getattr(cache, "layers", [])
    others = [index for index, one in enumerate(layers) if getattr(one, "keys", None) is None]
    if layers and not others:
        return
    found = "no past_key_values" if cache is None else type(cache).__name__
    if others:
        found = f"{type(layers[others[0]]).__name__} in layer {others[0]}"
    raise MisfitError(
        f"{type(model).__name__} cannot be measured, which takes a cache of keys and values in "
        f"every layer: it has {found}; supported: {', '.join(ADAPTERS)}"
    )


def require_finite(model: PreTrainedModel, logits: Tensor) -> None:
    """Raise `TrimtabError` unless every row of logits [rows, vocabulary] has a largest number."""
    if not bool(logits.amax(-1).isfinite().all()):
        raise TrimtabError(f"{NOT_FINITE}: {mend_not_finite(model)}")
