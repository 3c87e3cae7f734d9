"""What a forward pass does with keys, values and queries: write into a cache, and attend.

A *step* goes with the forward pass and does this for every layer: `DecodeStep` where each row is
one slot's newest token, `ReadStep` where the only row is several tokens of one slot.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from kernels.decode_attention import append_kv, decode_attention


class Step(Protocol):
    """One forward pass, as the attention function sees it."""

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        """Write a layer's new keys and values, and attend.

        Parameters
        ----------
        module : nn.Module
            The layer's attention.
        query, key, value : Tensor
            Of shape [rows, heads, tokens, head_dim], `key` and `value` with the KV heads.
        scale : float
            Of the products of query and key.
        window : int, optional
            The most tokens attended to, the token itself included.
        softcap : float, optional
            Bound of the scores.

        Returns
        -------
        Tensor
            Of shape [rows, tokens, heads, head_dim].
        """


class DecodeStep:
    """One token of every slot: appended where `lengths` end, attending to all up to there.

    It holds no state of its own: the same step serves as the cache grows. A slot of length 0 takes
    no part; its row of the result is zero.

    Parameters
    ----------
    keys, values : sequence of Tensor
        By layer, of shape [slots, max_len, kv_heads, head_dim].
    lengths : Tensor
        int32 of shape [slots], the new token counted; read where the step runs.
    """

    def __init__(self, keys: Sequence[Tensor], values: Sequence[Tensor], lengths: Tensor) -> None:
        self._keys, self._values, self._lengths = keys, values, lengths

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        keys, values = self._keys[_layer(module)], self._values[_layer(module)]
        append_kv(keys, values, key[:, :, 0], value[:, :, 0], self._lengths)
        found = decode_attention(
            query[:, :, 0], keys, values, self._lengths, scale, window, softcap
        )
        return found[:, None]


class ReadStep:
    """Tokens [start, end) of one slot, attending to those before and among themselves.

    Parameters
    ----------
    keys, values : sequence of Tensor
        By layer, of shape [slots, max_len, kv_heads, head_dim].
    slot, start, end : int
    """

    def __init__(
        self, keys: Sequence[Tensor], values: Sequence[Tensor], slot: int, start: int, end: int
    ) -> None:
        self._keys, self._values = keys, values
        self._slot, self._start, self._end = slot, start, end
        self._masks: dict[int | None, Tensor | None] = {}

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        first = 0 if window is None else max(0, self._start - window + 1)
        keys = self._write(self._keys[_layer(module)], key)[:, :, first:]
        values = self._write(self._values[_layer(module)], value)[:, :, first:]
        if window not in self._masks:
            self._masks[window] = self._mask(first, window, query.device)
        mask = self._masks[window]
        if softcap is not None:
            return _capped(query, keys, values, mask, scale, softcap)
        # Without a mask this is causal, which is right as then the first token read is seen first.
        return sdpa_attention_forward(module, query, keys, values, mask, scaling=scale)[0]

    def _write(self, cache: Tensor, new: Tensor) -> Tensor:
        """Write into the slot; return what it holds then, of shape [1, kv_heads, end, head_dim]."""
        slot = cache[self._slot]
        slot[self._start : self._end] = new[0].transpose(0, 1)
        return slot[: self._end].transpose(0, 1)[None]

    def _mask(self, first: int, window: int | None, device: torch.device) -> Tensor | None:
        """Return what may be seen, bool of shape [1, 1, tokens, seen]; None where it is plain.

        Plain is causal from the first token on, and the only token that sees everything.
        """
        reading = self._end - self._start
        fits = window is None or self._end - first <= window
        if reading == 1 or (self._start == first and fits):
            return None
        places = torch.arange(first, self._end, device=device)
        own = places[-reading:, None]
        mask = places <= own
        if window is not None:
            mask &= places > own - window
        return mask[None, None]


def _layer(module: nn.Module) -> int:
    index = module.layer_idx
    assert isinstance(index, int)
    return index


def _capped(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, softcap: float
) -> Tensor:
    """Return attention with capped scores, which the library does not offer.

    Scores and softmax are in float32, as in `kernels.reference.decode_attention`.
    """
    rows, heads, tokens, width = query.shape
    if mask is None:
        mask = torch.ones(tokens, key.shape[2], dtype=torch.bool, device=query.device).tril(
            key.shape[2] - tokens
        )
    grouped = query.unflatten(1, (key.shape[1], -1)).float()
    scores = torch.einsum("bkgqd,bknd->bkgqn", grouped, key.float()) * scale
    scores = (softcap * torch.tanh(scores / softcap)).masked_fill(~mask, -torch.inf)
    mixed = torch.einsum("bkgqn,bknd->bqkgd", scores.softmax(-1), value.float())
    return mixed.reshape(rows, tokens, heads, width).to(query.dtype)
