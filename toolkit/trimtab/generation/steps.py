"""What a forward pass does with keys, values and queries: write into a cache, and attend.

A *step* goes with the forward pass and does this for every layer: `DecodeStep` where each row is
one slot's newest token, `ReadStep` where the only row is several tokens of one slot.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from trimtab.vattention.attention import Scoring, attend
from trimtab_kernels.decode_attention import append_kv, decode_attention


class Step(Protocol):
    """One forward pass, as the attention function sees it, and methods that hook into the model.

    Attributes
    ----------
    start : int or None
        Position of the first token; None where every row is at one of its own.
    prompt : bool
        Whether the tokens are a prompt's.
    """

    start: int | None
    prompt: bool

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scoring: Scoring,
    ) -> Tensor:
        """Write a layer's new keys and values, and attend.

        Parameters
        ----------
        module : nn.Module
            The layer's attention.
        query, key, value : Tensor
            Of shape [rows, heads, tokens, head_dim], `key` and `value` with the KV heads.
        scoring : Scoring

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

    start: int | None = None
    prompt: bool = False

    def __init__(self, keys: Sequence[Tensor], values: Sequence[Tensor], lengths: Tensor) -> None:
        self._keys, self._values, self._lengths = keys, values, lengths

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scoring: Scoring,
    ) -> Tensor:
        keys, values = self._keys[_layer(module)], self._values[_layer(module)]
        append_kv(keys, values, key[:, :, 0], value[:, :, 0], self._lengths)
        found = decode_attention(
            query[:, :, 0], keys, values, self._lengths,
            scoring.scale, scoring.window, scoring.softcap,
        )  # fmt: skip
        return found[:, None]


class ReadStep:
    """Tokens [start, end) of one slot, attending to those before and among themselves.

    Parameters
    ----------
    keys, values : sequence of Tensor
        By layer, of shape [slots, max_len, kv_heads, head_dim].
    slot, start, end : int
    prompt : bool
        Whether the tokens are a prompt's.
    """

    def __init__(
        self,
        keys: Sequence[Tensor],
        values: Sequence[Tensor],
        slot: int,
        start: int,
        end: int,
        prompt: bool,
    ) -> None:
        self.start: int | None = start
        self.prompt = prompt
        self._keys, self._values = keys, values
        self._slot, self._start, self._end = slot, start, end
        self._masks: dict[int | None, Tensor | None] = {}

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scoring: Scoring,
    ) -> Tensor:
        window = scoring.window
        first = 0 if window is None else max(0, self._start - window + 1)
        keys = self._write(self._keys[_layer(module)], key)[:, :, first:]
        values = self._write(self._values[_layer(module)], value)[:, :, first:]
        if window not in self._masks:
            self._masks[window] = self._mask(first, window, query.device)
        return attend(module, query, keys, values, self._masks[window], scoring)

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
