"""What a forward pass does with queries, keys and values: write into a cache, and attend.

A *step* accompanies the forward pass and does this for every layer. In a `DecodeStep` each row is
the newest token of one slot; in an `ExtendStep` the only row is several tokens of one slot; in a
`PackedStep` it is those of several slots, one after another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from trimtab.vattention.attention import AttentionSpec, attend
from trimtab_kernels.decode_attention import append_kv, decode_attention


class Step(Protocol):
    """One forward pass, as seen by the attention function and by methods that hook into the model.

    Attributes
    ----------
    start : int or None
        Position of the first token, if the others follow it; None if the positions of the pass say.
    prompt : bool
        Whether the tokens belong to a prompt.
    """

    start: int | None
    prompt: bool

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, spec: AttentionSpec
    ) -> Tensor:
        """Write a layer's new keys and values into the cache, and attend.

        Parameters
        ----------
        module : nn.Module
            The attention module of the layer.
        query, key, value : Tensor
            Of shape [rows, heads, tokens, head_dim], with the KV heads in `key` and `value`.
        spec : AttentionSpec

        Returns
        -------
        Tensor
            Of shape [rows, tokens, heads, head_dim].
        """


class DecodeStep:
    """One token of every slot: written at the end of the slot, and attending to all of it.

    The step has no state of its own, so the same one serves while the cache grows. A slot of length
    0 takes no part; its row of the result is zero.

    Parameters
    ----------
    keys, values : sequence of Tensor
        By layer, of shape [slots, max_len, kv_heads, head_dim].
    lengths : Tensor
        int32 of shape [slots], including the new token; read when the step runs.
    """

    start: int | None = None
    prompt: bool = False

    def __init__(self, keys: Sequence[Tensor], values: Sequence[Tensor], lengths: Tensor) -> None:
        self._keys, self._values, self._lengths = keys, values, lengths

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, spec: AttentionSpec
    ) -> Tensor:
        keys, values = self._keys[_layer(module)], self._values[_layer(module)]
        append_kv(keys, values, key[:, :, 0], value[:, :, 0], self._lengths)
        output = decode_attention(
            query[:, :, 0], keys, values, self._lengths, spec.scale, spec.window, spec.softcap
        )
        return output[:, None]


class ExtendStep:
    """Tokens [start, end) of one slot, attending to the earlier ones and, causally, to each other.

    Parameters
    ----------
    keys, values : sequence of Tensor
        By layer, of shape [slots, max_len, kv_heads, head_dim].
    slot, start, end : int
    prompt : bool
        Whether the tokens belong to a prompt.
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
        self._masks: dict[int | None, Tensor | None] = {}  # by window

    @property
    def tokens(self) -> int:
        """How many tokens the step takes."""
        return self._end - self._start

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, spec: AttentionSpec
    ) -> Tensor:
        window = spec.window
        first = 0 if window is None else max(0, self._start - window + 1)
        keys = self._write(self._keys[_layer(module)], key)[:, :, first:]
        values = self._write(self._values[_layer(module)], value)[:, :, first:]
        if window not in self._masks:
            self._masks[window] = self._mask(first, window, query.device)
        return attend(module, query, keys, values, self._masks[window], spec)

    def _write(self, cache: Tensor, new: Tensor) -> Tensor:
        """Write into the slot and return its contents, of shape [1, kv_heads, end, head_dim]."""
        slot = cache[self._slot]
        slot[self._start : self._end] = new[0].transpose(0, 1)
        return slot[: self._end].transpose(0, 1)[None]

    def _mask(self, first: int, window: int | None, device: torch.device) -> Tensor | None:
        """Return which keys each token may see, bool of shape [1, 1, tokens, keys].

        None if no mask is needed: for a single token that sees every key, and for as many tokens
        as keys with plain causal attention.
        """
        tokens = self.tokens
        windowed = window is not None and self._end - first > window
        if tokens == 1 or (self._start == first and not windowed):
            return None
        keys = torch.arange(first, self._end, device=device)
        queries = keys[-tokens:, None]
        mask = keys <= queries
        if window is not None:
            mask &= keys > queries - window
        return mask[None, None]


class PackedStep:
    """Tokens of several slots, one after another in a single row; each slot sees its own.

    Parameters
    ----------
    parts : sequence of ExtendStep
        By slot, in the order of their tokens.
    prompt : bool
        Whether the tokens belong to prompts.
    """

    start: int | None = None

    def __init__(self, parts: Sequence[ExtendStep], prompt: bool) -> None:
        self.prompt = prompt
        self._parts = parts
        self._sizes = [part.tokens for part in parts]

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, spec: AttentionSpec
    ) -> Tensor:
        pieces = (made.split(self._sizes, dim=2) for made in (query, key, value))
        outputs = [
            part.attend(module, *own, spec) for part, *own in zip(self._parts, *pieces, strict=True)
        ]
        return torch.cat(outputs, dim=1)


def _layer(module: nn.Module) -> int:
    index = module.layer_idx
    assert isinstance(index, int)
    return index
