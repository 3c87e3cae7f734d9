"""One layer of a transformers cache, over slots that all layers share."""

from __future__ import annotations

from typing import Any, Never

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from trimtab.errors import MisfitError
from trimtab.vattention.slot_range import SlotRange


class VirtualLayer(CacheLayerMixin):
    """Keys and values of one layer, written in place and shown as views.

    A layer with a sliding window keeps every token and shows those that are in the window of some
    query, which are those that transformers' own sliding layer keeps.

    Parameters
    ----------
    batch : SlotRange
        That of all layers.
    index : int
        Of the layer.
    window : int, optional
        Tokens that a query sees, its own included; all of them where None.

    Attributes
    ----------
    keys, values : Tensor or None
        Views of all that is cached, of shape ``[rows, kv_heads, length, head_dim]``.
    """

    is_croppable = True

    def __init__(self, batch: SlotRange, index: int, window: int | None = None) -> None:
        super().__init__()
        self.is_sliding = window is not None
        self._slot_range = batch
        self._index = index
        self._window = window
        self._slots: tuple[Tensor, Tensor] | None = None
        if batch.length:
            self._attach(batch.rows, batch.length)

    @property
    def rows(self) -> int:
        """How many sequences there are."""
        return 0 if self._slots is None else self._slots[0].shape[0]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Begin with as many sequences as there are in keys and values of the first tokens."""
        self._slot_range.begin(key_states.shape[0])
        self._attach(self._slot_range.rows, 0)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the keys and values of new tokens behind those that are there.

        Parameters
        ----------
        key_states, value_states : Tensor
            Of shape ``[rows, kv_heads, tokens, head_dim]``.

        Returns
        -------
        keys, values : Tensor
            Views, of shape ``[rows, kv_heads, n, head_dim]``, of what attention is to see.

        Raises
        ------
        MisfitError
            If the tensors have another shape, dtype or device than the cache.
        KVOutOfMemory
            If there are no pages for the tokens. The cache is as it was.
        ValueError
            If there are more sequences than the cache has room for, or more tokens.
        RuntimeError
            If the tensors require gradients, or the cache is asleep or closed.
        """
        length, tokens = self.get_seq_length(), key_states.shape[-2]
        if not length:
            self.lazy_initialization(key_states, value_states)
        assert self._slots is not None
        self._check(key_states, value_states)
        shown, offset = self.get_mask_sizes(tokens)
        self._slot_range.grow(length + tokens)
        for slots, states in zip(self._slots, (key_states, value_states), strict=True):
            slots.narrow(2, length, tokens).copy_(states)
        keys, values = self._show(length + tokens)
        if not offset:
            return keys, values
        return keys.narrow(2, offset, shown), values.narrow(2, offset, shown)

    def get_seq_length(self) -> int:
        """Return the tokens of each sequence."""
        return 0 if self.keys is None else self.keys.shape[2]

    def get_max_length(self) -> int:
        """Return the tokens that a sequence may have."""
        return self._slot_range.kv.geometry.max_len

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many tokens `update` is going to show, and the position of the first."""
        length = self.get_seq_length()
        seen = length if self._window is None else min(length, self._window - 1)
        return seen + query_length, length - seen

    def reset(self) -> None:
        """Forget all tokens; the next may be of another number of sequences."""
        self._slot_range.shorten(0)
        self.detach()

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens: as many as the argument is below zero, or all there are."""
        if tokens_to_remove > 0:
            raise ValueError(
                f"crop({tokens_to_remove}); expected minus the number of tokens to remove"
            )
        if self._slots is not None:
            length = max(self.get_seq_length() + tokens_to_remove, 0)
            self._slot_range.shorten(length)
            self._show(length)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Let sequence i become what sequence ``beam_idx[i]`` was."""
        if self.get_seq_length():
            self._take(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Let every sequence be followed by copies of it, `repeats` of it in all."""
        if self.get_seq_length():
            self._take(torch.arange(self.rows).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some sequences, by their numbers or by a mask."""
        if self.get_seq_length():
            self._take(torch.arange(self.rows, device=indices.device)[indices])

    def offload(self) -> Never:
        """Refuse: see `VirtualKV.sleep`."""
        raise NotImplementedError(
            "a virtual cache is not offloaded layer by layer; kv.sleep() moves all of it to the "
            "host and kv.wake() moves it back"
        )

    prefetch = offload

    def detach(self) -> None:
        """Hold no tensors over the slots any more."""
        self.keys = self.values = self._slots = None
        self.is_initialized = False

    def _attach(self, rows: int, length: int) -> tuple[Tensor, Tensor]:
        kv, first = self._slot_range.kv, self._slot_range.first
        keys, values = (
            tensors[self._index][first : first + rows].transpose(1, 2)
            for tensors in (kv.keys, kv.values)
        )
        self._slots = keys, values
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True
        return self._show(length)

    def _show(self, length: int) -> tuple[Tensor, Tensor]:
        assert self._slots is not None
        keys, values = (slots.narrow(2, 0, length) for slots in self._slots)
        self.keys, self.values = keys, values
        return keys, values

    def _take(self, order: Tensor) -> None:
        """Let sequence i become what sequence ``order[i]`` was; there may be more or fewer.

        Raises
        ------
        RuntimeError
            If the slots are somebody else's.
        ValueError, KVOutOfMemory
            If there is no room for so many sequences.
        """
        length, rows = self.get_seq_length(), len(order)
        if self._slot_range.borrowed:
            raise RuntimeError(
                "sequences in given slots keep their order: their pages may be shared, and then "
                "must not be written to; for beams use a cache with slots of its own"
            )
        self._slot_range.widen(rows)
        order = order.to(self.device)
        chosen = [states.index_select(0, order) for states in self._show(length)]
        for states, copies in zip(self._attach(rows, length), chosen, strict=True):
            states.copy_(copies)

    def _check(self, keys: Tensor, values: Tensor) -> None:
        assert self._slots is not None
        rows, heads, _, size = self._slots[0].shape
        expected = rows, heads, keys.shape[2], size
        for name, states in (("keys", keys), ("values", values)):
            if states.requires_grad:
                raise RuntimeError(
                    f"the {name} require gradients, which a virtual cache does not keep; run the "
                    "model under torch.no_grad() or torch.inference_mode()"
                )
            if (states.shape, states.dtype, states.device) != (expected, self.dtype, self.device):
                raise MisfitError(
                    f"layer {self._index} of {self._slot_range.owner} gave {name} of shape "
                    f"{list(states.shape)}, {states.dtype} on {states.device}; the cache holds "
                    f"{list(expected)}, {self.dtype} on {self.device}, in every layer: make it for "
                    "this model, batch, dtype and device, if all layers of the model are alike"
                )
