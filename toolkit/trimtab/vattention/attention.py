"""Attention for transformers' models: what the cache's own functions share, and one for `generate`.

With `decode_kernel` stock ``generate`` runs `trimtab_kernels.decode_attention` in its decode steps,
and PyTorch's attention for everything else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from trimtab.errors import MisfitError
from trimtab_kernels.decode_attention import decode_attention

NAME = "trimtab_decode"
# Terms that some attention functions add to the scores; no supported architecture passes them.
FOREIGN = ("s_aux", "position_bias")


@dataclass(frozen=True)
class AttentionSpec:
    """How queries are weighed against keys.

    Parameters
    ----------
    scale : float
        Of the products of query and key.
    window : int, optional
        The most tokens attended to, the query's own included.
    softcap : float, optional
        Bound of the scores.
    """

    scale: float
    window: int | None = None
    softcap: float | None = None


def require_plain(module: nn.Module, dropout: float, others: dict[str, Any]) -> None:
    """Raise `MisfitError` if a layer asks for more than an `AttentionSpec` can say."""
    foreign = [name for name in FOREIGN if others.get(name) is not None]
    if foreign or dropout or not getattr(module, "is_causal", True):
        raise MisfitError(
            f"{type(module).__name__} asks for {', '.join(foreign) or 'dropout or later tokens'}: "
            "Trimtab's attention is causal, with windows and soft caps only"
        )


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    spec: AttentionSpec,
) -> Tensor:
    """Attend by PyTorch's function, or, with capped scores, which it does not offer, without.

    Parameters
    ----------
    query, key, value : Tensor
        Of shape [rows, heads, tokens, head_dim], `key` and `value` with the KV heads.
    mask : Tensor, optional
        bool of shape [rows or 1, 1, tokens, keys], True where a query may see a key; a window is in
        it. None where that is plain: one token that sees all, or as many tokens as keys, causal.
    spec : AttentionSpec

    Returns
    -------
    Tensor
        Of shape [rows, tokens, heads, head_dim].
    """
    if spec.softcap is None:
        return sdpa_attention_forward(module, query, key, value, mask, scaling=spec.scale)[0]
    rows, heads, tokens, width = query.shape
    if mask is None:
        shape = 1, 1, tokens, key.shape[2]
        mask = torch.ones(shape, dtype=torch.bool, device=query.device)
        mask = mask.tril(key.shape[2] - tokens)
    # Scores and softmax in float32, as in `trimtab_kernels.reference.decode_attention`.
    grouped = query.unflatten(1, (key.shape[1], -1)).float()
    scores = torch.einsum("bkgqd,bknd->bkgqn", grouped, key.float()) * spec.scale
    scores = spec.softcap * torch.tanh(scores / spec.softcap)
    # The least number, not minus infinity: a token of the padding sees nothing, and is no NaN.
    weights = scores.masked_fill(~mask[:, :, None], torch.finfo(scores.dtype).min).softmax(-1)
    mixed = torch.einsum("bkgqn,bknd->bqkgd", weights, value.float())
    return mixed.reshape(rows, tokens, heads, width).to(query.dtype)


@contextmanager
def using_attention(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Have a model use the attention function of a name for the time of the ``with``."""
    before = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@contextmanager
def decode_kernel(model: PreTrainedModel) -> Iterator[None]:
    """Have stock ``generate`` run `trimtab_kernels.decode_attention` for the time of the ``with``.

    It runs where a step has one token a sequence and no mask: sequences of one length, without
    padding, and a window, if there is one, not yet full. Whatever else is PyTorch's attention. It
    reads a `VirtualCache` where it lies. Sums are in another order than PyTorch's, so that
    near-ties between tokens may be decided otherwise.

    Parameters
    ----------
    model : PreTrainedModel

    Raises
    ------
    MisfitError
        In a forward pass that asks for dropout, attention to later tokens, or terms added to the
        scores.
    """
    with using_attention(model, NAME):
        yield


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[Tensor, None]:
    require_plain(module, dropout, others)
    spec = AttentionSpec(scaling, sliding_window, softcap)
    if query.shape[2] > 1 or attention_mask is not None:
        return attend(module, query, key, value, attention_mask, spec), None
    rows, _, tokens, _ = key.shape
    lengths = torch.full((rows,), tokens, dtype=torch.int32, device=key.device)
    keys, values = key.transpose(1, 2), value.transpose(1, 2)
    found = decode_attention(query[:, :, 0], keys, values, lengths, scaling, None, softcap)
    return found[:, None], None


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
