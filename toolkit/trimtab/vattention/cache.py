"""The virtual KV cache as a transformers `Cache`, for stock ``model.generate``."""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from typing import Never, Self, SupportsIndex

import torch
from torch import Tensor
from transformers import Cache, PreTrainedConfig

from trimtab.errors import MisfitError
from trimtab.models.facts import CacheShape
from trimtab.vattention.batch import Batch
from trimtab.vattention.cache_layer import VirtualLayer
from trimtab.vattention.settings import Layout
from trimtab.vattention.virtual_kv import VirtualKV


class VirtualCache(Cache):
    """Keys and values on virtual memory: growing them moves none, and no memory waits for them.

    A drop-in for `DynamicCache` in ``model.generate(past_key_values=...)``: the same tokens come
    out, under the same attention masks. Every token is kept, of sliding layers too, until
    `crop`, `reset` or `close`. For inference only. A context manager, which closes the cache.

    Parameters
    ----------
    config : PreTrainedConfig
        The model's.
    batch : int
        The most sequences at a time; each beam and each returned sequence of a prompt is one.
    max_len : int
        The most tokens of a sequence, prompt included. It takes addresses only.
    dtype, device
        The model's.
    layout, page_group, budget
        See `VirtualKV`.

    Attributes
    ----------
    kv : VirtualKV
        Where the keys and values are.

    Raises
    ------
    MisfitError
        If the model's layers keep anything else than keys and values of their own tokens, or
        differ in shape.
    ValueError
        If a size cannot be used.
    TrimtabError
        If the device or its driver cannot do this.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        *,
        batch: int,
        max_len: int,
        dtype: torch.dtype,
        device: str | torch.device = "cpu",
        layout: Layout | str = Layout.slot,
        page_group: int | None = None,
        budget: int | None = None,
    ) -> None:
        shape = CacheShape.of(config)
        if batch < 1:
            raise ValueError(f"batch={batch}; expected at least 1")
        layers, heads, size = len(shape.windows), shape.kv_heads, shape.head_dim
        kv = VirtualKV(
            layers, batch, max_len, heads, size, dtype, layout, page_group,
            device=device, budget=budget,
        )  # fmt: skip
        for _ in range(batch):
            kv.acquire()
        self._begin(shape, Batch(kv, 0, batch, shape.owner, borrowed=False))
        # For those who do not close it: nobody closes a DynamicCache.
        weakref.finalize(self, _close, self._virtual, kv, os.getpid()).atexit = False

    @classmethod
    def over(cls, config: PreTrainedConfig, kv: VirtualKV, slots: Sequence[int]) -> Self:
        """Return a cache over slots that are in use already, with what is in them.

        With slots from `VirtualKV.fork_prefix` many sequences continue one prompt, of which there
        is one copy. The slots stay the caller's, to be released, and `kv` to be closed, when the
        cache is. Beams are refused, since they would write to pages that may be shared.

        Parameters
        ----------
        config : PreTrainedConfig
        kv : VirtualKV
        slots : sequence of int
            Consecutive ones, with equally many tokens. If there are tokens, there are as many
            sequences as slots.

        Raises
        ------
        ValueError
            If the slots are not consecutive or of different lengths.
        MisfitError
            If `kv` has another shape than the model.
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
                f"slots={list(slots)} with {sorted(lengths)} tokens; expected consecutive slots "
                "with equally many"
            )
        cache = cls.__new__(cls)
        cache._begin(shape, Batch(kv, slots[0], len(slots), shape.owner, borrowed=True))
        return cache

    def _begin(self, shape: CacheShape, batch: Batch) -> None:
        self._virtual = [
            VirtualLayer(batch, index, window) for index, window in enumerate(shape.windows)
        ]
        super().__init__(layers=[*self._virtual])
        self.kv = batch.kv
        self._batch = batch

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._detach()
        if not self._batch.borrowed:
            self.kv.__exit__(kind, error, trace)

    def __reduce_ex__(self, protocol: SupportsIndex) -> Never:
        raise TypeError(
            "a VirtualCache is neither copied nor pickled: it consists of addresses of this "
            "process. To continue one prompt several times use VirtualKV.fork_prefix and "
            "VirtualCache.over, or a DynamicCache"
        )

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some sequences, by their numbers or by a mask."""
        super().batch_select_indices(indices)
        # Not before every layer has read what it keeps: pages without a token may be reclaimed.
        self._batch.narrow(self._virtual[0].rows)

    @property
    def live_bytes(self) -> int:
        """Bytes of the keys and values of all tokens."""
        return self.kv.stats().live

    @property
    def committed_bytes(self) -> int:
        """Bytes of memory that these take, in pages."""
        return self.kv.stats().committed

    @property
    def reserved_bytes(self) -> int:
        """Bytes of addresses."""
        return self.kv.stats().reserved

    def close(self) -> None:
        """Give memory and addresses back; closing twice is closing once.

        Raises
        ------
        RuntimeError
            While somebody else holds tensors over the cache.
        """
        self._detach()
        if not self._batch.borrowed:
            self.kv.close()

    def _detach(self) -> None:
        for layer in self._virtual:
            layer.detach()


def _close(layers: Sequence[VirtualLayer], kv: VirtualKV, process: int) -> None:
    # What a forked child drops is its copy of names for its parent's memory.
    if os.getpid() == process:
        for layer in layers:
            layer.detach()
        kv.close()
