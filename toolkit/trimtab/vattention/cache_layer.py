"""One layer of a transformers cache, over slots that all its layers share."""

from __future__ import annotations

from typing import Any, Never

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from trimtab.errors import MisfitError, TrimtabError
from trimtab.vattention.slot_range import SlotRange


class VirtualLayer(CacheLayerMixin):
    """Keys and values of one layer, written in place and returned as views.

    A layer with a sliding window keeps every token, and returns those in the window of any query:
    the same ones that transformers' own sliding layer keeps.

    Parameters
    ----------
    slots : SlotRange
        Shared by all layers.
    index : int
        Index of the layer.
    window : int, optional
        The most tokens that a query sees, including its own; all of them if None.

    Attributes
    ----------
    keys, values : Tensor or None
        Views of everything cached, of shape ``[rows, kv_heads, length, head_dim]``.
    """

    is_croppable = True

    def __init__(self, slots: SlotRange, index: int, window: int | None = None) -> None:
        super().__init__()
        self.is_sliding = window is not None
        self._slots = slots
        self._index = index
        self._window = window
        self._tensors: tuple[Tensor, Tensor] | None = None
        if slots.length:
            self._attach(slots.rows, slots.length)

    @property
    def rows(self) -> int:
        """How many sequences there are."""
        return 0 if self._tensors is None else self._tensors[0].shape[0]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Start with as many sequences as the first keys and values have."""
        self._slots.begin(key_states.shape[0])
        self._attach(self._slots.rows, 0)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append the keys and values of new tokens.

        Parameters
        ----------
        key_states, value_states : Tensor
            Of shape ``[rows, kv_heads, tokens, head_dim]``.

        Returns
        -------
        keys, values : Tensor
            Views of what attention is to see, of shape ``[rows, kv_heads, n, head_dim]``.

        Raises
        ------
        MisfitError
            If the shape, dtype or device of the tensors is not the cache's.
        KVOutOfMemory
            If there are no pages for the tokens. The cache is as before.
        ValueError
            If there are more sequences or more tokens than the cache has room for.
        RuntimeError
            If the tensors require gradients, or the cache is asleep or closed.
        TrimtabError
            If the cache holds tokens of another thread that is still alive, or another thread has
            dropped those of this one.
        """
        tokens = key_states.shape[-2]
        # A text begins in the first layer, and with one token only where nothing was dropped.
        with self._slots.claimed(going_on=tokens == 1 or self._index > 0):
            length = self.get_seq_length()
            if not length:
                self.lazy_initialization(key_states, value_states)
            assert self._tensors is not None
            self._check(key_states, value_states)
            shown, offset = self.get_mask_sizes(tokens)
            self._slots.grow(length + tokens)
            for tensor, states in zip(self._tensors, (key_states, value_states), strict=True):
                tensor.narrow(2, length, tokens).copy_(states)
            keys, values = self._show(length + tokens)
        if not offset:
            return keys, values
        return keys.narrow(2, offset, shown), values.narrow(2, offset, shown)

    def get_seq_length(self) -> int:
        """Return how many tokens each sequence has."""
        return 0 if self.keys is None else self.keys.shape[2]

    def get_max_length(self) -> int:
        """Return how many tokens a sequence may have."""
        return self._slots.kv.geometry.max_len

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many tokens `update` will return, and the position of the first.

        Raises
        ------
        TrimtabError
            If there is no new token: a prompt that is no longer than what is cached.
        """
        length = self.get_seq_length()
        if not query_length:
            raise TrimtabError(
                f"the cache holds {length} tokens of an earlier text, and the prompt has no more: "
                "call reset() on the cache before another text, or give that text with what follows"
            )
        seen = length if self._window is None else min(length, self._window - 1)
        return seen + query_length, length - seen

    def reset(self) -> None:
        """Drop all tokens; the next ones may belong to another number of sequences."""
        with self._slots.exclusive():
            self._slots.shorten(0)
            self.detach()

    def crop(self, tokens_to_remove: int) -> None:
        """Drop the last tokens: minus the argument of them, or all if there are fewer."""
        if tokens_to_remove > 0:
            raise ValueError(
                f"crop({tokens_to_remove}); expected minus the number of tokens to remove"
            )
        with self._slots.claimed():
            if self._tensors is not None:
                length = max(self.get_seq_length() + tokens_to_remove, 0)
                self._slots.shorten(length)
                self._show(length)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Replace sequence i by what was sequence ``beam_idx[i]``."""
        if self.get_seq_length():
            self._take(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sequence `repeats` times, the copies next to each other."""
        if self.get_seq_length():
            self._take(torch.arange(self.rows).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some sequences, given by index or by a mask."""
        if self.get_seq_length():
            self._take(torch.arange(self.rows, device=indices.device)[indices])

    def offload(self) -> Never:
        """Refuse to offload one layer; see `VirtualKV.sleep`."""
        raise NotImplementedError(
            "a virtual cache is not offloaded layer by layer; kv.sleep() moves all of it to the "
            "host, and kv.wake() moves it back"
        )

    prefetch = offload

    def detach(self) -> None:
        """Let go of all tensors over the slots."""
        self.keys = self.values = self._tensors = None
        self.is_initialized = False

    def _attach(self, rows: int, length: int) -> tuple[Tensor, Tensor]:
        kv, first = self._slots.kv, self._slots.first
        keys, values = (
            tensors[self._index][first : first + rows].transpose(1, 2)
            for tensors in (kv.keys, kv.values)
        )
        self._tensors = keys, values
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True
        return self._show(length)

    def _show(self, length: int) -> tuple[Tensor, Tensor]:
        assert self._tensors is not None
        keys, values = (tensor.narrow(2, 0, length) for tensor in self._tensors)
        self.keys, self.values = keys, values
        return keys, values

    def _take(self, order: Tensor) -> None:
        """Replace sequence i by what was sequence ``order[i]``; their number may change.

        Raises
        ------
        RuntimeError
            If the slots are borrowed.
        ValueError, KVOutOfMemory
            If there is no room for that many sequences.
        """
        length, rows = self.get_seq_length(), len(order)
        if self._slots.borrowed:
            raise RuntimeError(
                "sequences in given slots keep their order, as their pages may be shared and must "
                "not be written to then; for beams, use a cache with slots of its own"
            )
        with self._slots.claimed():
            self._slots.widen(rows)
            order = order.to(self.device)
            chosen = [states.index_select(0, order) for states in self._show(length)]
            for states, copies in zip(self._attach(rows, length), chosen, strict=True):
                states.copy_(copies)

    def _check(self, keys: Tensor, values: Tensor) -> None:
        assert self._tensors is not None
        rows, heads, _, size = self._tensors[0].shape
        expected = rows, heads, keys.shape[2], size
        for name, states in (("keys", keys), ("values", values)):
            if states.requires_grad:
                raise RuntimeError(
                    f"the {name} require gradients, which a virtual cache does not keep; run the "
                    "model under torch.no_grad() or torch.inference_mode()"
                )
            if (states.shape, states.dtype, states.device) != (expected, self.dtype, self.device):
                raise MisfitError(
                    f"layer {self._index} of {self._slots.owner} gave {name} of shape "
                    f"{list(states.shape)}, {states.dtype} on {states.device}; the cache holds "
                    f"{list(expected)}, {self.dtype} on {self.device}, in every layer: make it for "
                    "this model, batch, dtype and device; all layers of the model must be alike"
                )
