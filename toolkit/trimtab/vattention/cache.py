"""The virtual KV cache as a transformers `Cache`, for stock ``model.generate``."""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from contextlib import suppress
from typing import Never, Self, SupportsIndex

import torch
from torch import Tensor
from transformers import Cache, PreTrainedConfig

from trimtab.errors import MisfitError
from trimtab.models.facts import CacheShape
from trimtab.settings import is_whole
from trimtab.vattention.cache_layer import VirtualLayer
from trimtab.vattention.settings import Layout
from trimtab.vattention.slot_range import SlotRange
from trimtab.vattention.virtual_kv import VirtualKV


class VirtualCache(Cache):
    """Keys and values on virtual memory: growing moves none of them, and takes memory as needed.

    A drop-in replacement for `DynamicCache` in ``model.generate(past_key_values=...)``: it yields
    the same tokens, with the same attention masks. Every token is kept until `crop`, `reset` or
    `close`, in sliding layers too. For inference only. A context manager that closes the cache.

    As in a `DynamicCache`, the tokens of a prompt that are cached are not looked at again: before
    a text that does not go on from the one in the cache, call `reset`.

    While it holds tokens of one thread, others that change it are refused; only `reset` and `close`
    are not. A text of another thread does not go on after that.

    Parameters
    ----------
    config : PreTrainedConfig
        The model's.
    batch : int
        The most sequences at a time; every beam and every returned sequence counts.
    max_len : int
        The most tokens of a sequence, including its prompt. This takes addresses, not memory.
    dtype, device
        The model's.
    layout, page_group, budget
        See `VirtualKV`.

    Attributes
    ----------
    kv : VirtualKV
        Holds the keys and values.

    Raises
    ------
    MisfitError
        If the model's layers keep anything but keys and values of their own tokens, or differ in
        shape.
    ValueError
        If a size is out of range.
    TrimtabError
        If the device or its driver has no virtual memory management.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        *,
        batch: int,
        max_len: int,
        dtype: torch.dtype,
        device: str | torch.device = "cpu",
        layout: Layout | str | None = None,
        page_group: int | None = None,
        budget: int | None = None,
    ) -> None:
        shape = CacheShape.of(config)
        if not is_whole(batch) or batch < 1:
            raise ValueError(f"batch={batch!r:.60}; expected a positive integer")
        layers, heads, size = len(shape.windows), shape.kv_heads, shape.head_dim
        kv = VirtualKV(
            layers, batch, max_len, heads, size, dtype, layout, page_group,
            device=device, budget=budget,
        )  # fmt: skip
        kv.acquire_all()
        self._begin(shape, SlotRange(kv, 0, batch, shape.owner, borrowed=False))
        # For callers who do not close it, as nobody closes a DynamicCache.
        weakref.finalize(self, _close, self._virtual, kv, os.getpid()).atexit = False

    @classmethod
    def over(cls, config: PreTrainedConfig, kv: VirtualKV, slots: Sequence[int]) -> Self:
        """Return a cache over slots that are already in use, with the tokens in them.

        With slots from `VirtualKV.fork_prefix`, many sequences continue a single copy of a prompt.
        The caller keeps the slots, and is to close this cache before releasing them and closing
        `kv`. Beams are refused, since they would write to pages that may be shared.

        Parameters
        ----------
        config : PreTrainedConfig
        kv : VirtualKV
        slots : sequence of int
            Consecutive, and of equal length. If they have tokens, there are as many sequences as
            slots.

        Raises
        ------
        ValueError
            If the slots are not consecutive, or of different lengths.
        MisfitError
            If the shape of `kv` is not the model's.
        """
        shape = CacheShape.of(config)
        geometry = kv.geometry
        found = geometry.layers, geometry.kv_heads, geometry.head_dim
        expected = len(shape.windows), shape.kv_heads, shape.head_dim
        if found != expected:
            raise MisfitError(
                f"the slots are made for (layers, kv_heads, head_dim) = {found}, and "
                f"{shape.owner} has {expected}; make another VirtualKV for it"
            )
        lengths = {kv.length(slot) for slot in slots}
        if len(lengths) != 1 or list(slots) != list(range(slots[0], slots[0] + len(slots))):
            raise ValueError(
                f"slots={list(slots)} with {sorted(lengths)} tokens; expected consecutive slots of "
                "equal length"
            )
        cache = cls.__new__(cls)
        cache._begin(shape, SlotRange(kv, slots[0], len(slots), shape.owner, borrowed=True))
        return cache

    def _begin(self, shape: CacheShape, slots: SlotRange) -> None:
        self._virtual = [
            VirtualLayer(slots, index, window) for index, window in enumerate(shape.windows)
        ]
        super().__init__(layers=[*self._virtual])
        self.kv = slots.kv
        self._slots = slots

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._detach()
        if not self._slots.borrowed:
            self.kv.__exit__(kind, error, trace)

    def __reduce_ex__(self, protocol: SupportsIndex) -> Never:
        raise TypeError(
            "a VirtualCache is neither copied nor pickled: it consists of addresses of this "
            "process. To continue one prompt several times, use VirtualKV.fork_prefix and "
            "VirtualCache.over, or a DynamicCache"
        )

    def reset(self) -> None:
        """Drop all tokens, in all layers at once; the next ones begin another text."""
        with self._slots.exclusive():
            super().reset()

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some sequences, given by index or by a mask."""
        super().batch_select_indices(indices)
        # Only once every layer has read what it keeps: pages without a token may be reclaimed.
        self._slots.narrow(self._virtual[0].rows)

    @property
    def live_bytes(self) -> int:
        """Bytes of the keys and values of all tokens."""
        return self.kv.stats().live

    @property
    def committed_bytes(self) -> int:
        """Bytes of the pages that hold them."""
        return self.kv.stats().committed

    @property
    def reserved_bytes(self) -> int:
        """Bytes of the addresses."""
        return self.kv.stats().reserved

    def close(self) -> None:
        """Free memory and addresses, for good; closing again does nothing.

        Raises
        ------
        RuntimeError
            While someone else holds tensors over the cache: to free them, close it once more.
        """
        self._detach()
        if not self._slots.borrowed:
            self.kv.close()

    def _detach(self) -> None:
        self._slots.close()
        for layer in self._virtual:
            layer.detach()


def _close(layers: Sequence[VirtualLayer], kv: VirtualKV, process: int) -> None:
    # In a forked child, the memory still belongs to the parent.
    if os.getpid() == process:
        for layer in layers:
            layer.detach()
        # If someone still holds tensors over it, the memory is freed when these are dropped.
        with suppress(RuntimeError):
            kv.close()
