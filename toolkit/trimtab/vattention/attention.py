"""Attention for transformers' models: what the engine and stock ``generate`` have in common.

Under `decode_kernel`, stock ``generate`` runs `trimtab_kernels.decode_attention` in its decode
steps, and PyTorch's attention for everything else.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from trimtab.arguments import require_language_model
from trimtab.errors import MisfitError
from trimtab.models.changes import undone_in_order
from trimtab.models.configs import configs_beside, require_stock_attention, with_parts
from trimtab_kernels.decode_attention import decode_attention

NAME = "trimtab_decode"
# Terms that some architectures add to the scores; no supported one does.
FOREIGN = ("s_aux", "position_bias")
_SETTING = threading.RLock()


@dataclass(frozen=True)
class AttentionSpec:
    """How a layer scores keys, and which of the earlier tokens it attends to.

    Parameters
    ----------
    scale : float
        Factor on the products of query and key.
    window : int, optional
        The most tokens attended to, including the query's own; no limit if None.
    softcap : float, optional
        Soft bound of the scores; none if None.
    """

    scale: float
    window: int | None = None
    softcap: float | None = None


def require_plain(module: nn.Module, dropout: float, others: dict[str, Any]) -> None:
    """Raise `MisfitError` if a layer needs more than causal attention by an `AttentionSpec`."""
    asked = [name for name in FOREIGN if others.get(name) is not None]
    if dropout:
        asked.append("dropout")
    if not _is_causal(module, others.get("is_causal")):
        asked.append("later tokens (is_causal=False)")
    if asked:
        raise MisfitError(
            f"{type(module).__name__} asks for {', '.join(asked)}: Trimtab's attention is causal, "
            "with windows and soft caps only; run the model with transformers' own attention"
        )


def _is_causal(module: nn.Module, given: bool | None) -> bool:
    """Say whether a layer, its config and the keyword of a pass all leave out later tokens."""
    own = (getattr(one, "is_causal", True) for one in (module, getattr(module, "config", None)))
    return (given is None or given) and all(own)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    spec: AttentionSpec,
) -> Tensor:
    """Attend with PyTorch's function, or with separate operations if the scores are capped.

    Parameters
    ----------
    module : nn.Module
        The attention module of the layer.
    query, key, value : Tensor
        Of shape [rows, heads, tokens, head_dim], with the KV heads in `key` and `value`.
    mask : Tensor, optional
        Of shape [rows or 1, 1, tokens, keys]: bool, True where a query may see a key, or floating
        point, to be added to the scores; it includes the window. None for a single token that sees
        every key, and for as many tokens as keys with plain causal attention.
    spec : AttentionSpec
        Its window is not applied: that is in the mask.

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
    # The lowest number, not minus infinity: a padding token sees no key, and must not become NaN.
    if mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask[:, :, None], torch.finfo(scores.dtype).min)
    else:
        scores = scores + mask[:, :, None]
    weights = scores.softmax(-1)
    mixed = torch.einsum("bkgqn,bknd->bqkgd", weights, value.float())
    return mixed.reshape(rows, tokens, heads, width).to(query.dtype)


@contextmanager
def using_attention(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Have a model use the attention function of a given name for the time of the ``with``.

    Whatever is set meanwhile, every config has its own again afterwards.

    Raises
    ------
    MisfitError
        If its own is neither transformers' nor ours.
    """
    require_stock_attention(model)
    with ExitStack() as undo:
        with _SETTING:  # models may share configs
            beside = configs_beside(model)
            for config in with_parts([model.config, *beside]):
                undo.enter_context(_kept(config))
            model.set_attn_implementation(name)
            for config in beside:
                config._attn_implementation = name
        yield


@undone_in_order
def _kept(config: PreTrainedConfig) -> Iterator[None]:
    before = config._attn_implementation
    try:
        yield
    finally:
        config._attn_implementation_internal = before  # of this one; the property sets its parts'


@contextmanager
def decode_kernel(model: PreTrainedModel) -> Iterator[None]:
    """Have stock ``generate`` run `trimtab_kernels.decode_attention` for the time of the ``with``.

    The kernel runs in steps with one token per sequence and no mask: sequences of equal length
    without padding, and no window that is full. All other steps use PyTorch's attention, as do all
    steps on a static cache, which always come with a mask. The kernel reads a `VirtualCache` in
    place. It adds in another order than PyTorch, so near-ties between tokens may be decided
    differently.

    Parameters
    ----------
    model : PreTrainedModel

    Raises
    ------
    TrimtabError
        If it is no model.
    MisfitError
        If the model generates no text, or its attention function is not transformers'; and in a
        forward pass with dropout, attention to later tokens, or terms added to the scores, or that
        is to return attention weights.
    """
    require_language_model(model)
    refusing = model.register_forward_pre_hook(_refuse_weights, with_kwargs=True)
    try:
        with using_attention(model, NAME):
            yield
    finally:
        refusing.remove()


def _refuse_weights(model: nn.Module, _: object, given: dict[str, Any]) -> None:
    """Raise `MisfitError` for a pass that is to return attention weights: the kernel has none."""
    if given.get("output_attentions") or getattr(model.config, "output_attentions", False):
        raise MisfitError(
            "output_attentions=True: Trimtab's attention has no attention weights to return; leave "
            "decode_kernel, and set_attn_implementation('eager')"
        )


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
    output = decode_attention(query[:, :, 0], keys, values, lengths, scaling, None, softcap)
    return output[:, None], None


def _mask(**given: Any) -> Tensor | None:
    """Make transformers' mask, left out only where the keys end with the queries' own.

    Those of a static cache go on beyond; its first position is a tensor.
    """
    end, offset = given["kv_offset"] + given["kv_length"], given["q_offset"]
    if not isinstance(offset, int) or offset + given["q_length"] != end:
        given["allow_is_causal_skip"] = False
    found: Tensor | None = sdpa_mask(**given)
    return found


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, _mask)
