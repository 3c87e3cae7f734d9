"""Where the keys and values of a token lie, and how many bytes they take: arithmetic only.

A cache consists of *planes*: one for the keys and one for the values of each layer, or, in the
layout `mega`, of all layers together. In every plane the tokens of a slot are contiguous. All
planes of a slot are equally long, so a slot grows by one page in every plane: a *page row*.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch

from trimtab.settings import is_whole
from trimtab.vattention.settings import Layout

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Geometry:
    """The shape of a cache, independent of its pages.

    Parameters
    ----------
    layers, slots, kv_heads, head_dim : int
    max_len : int
        The most tokens of a slot.
    dtype : torch.dtype
        float32, float16 or bfloat16.
    layout : Layout

    Raises
    ------
    ValueError
        If a size is no positive integer, or the dtype is not supported.
    """

    layers: int
    slots: int
    max_len: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    layout: Layout = Layout.slot

    def __post_init__(self) -> None:
        for name in ("layers", "slots", "max_len", "kv_heads", "head_dim"):
            size = getattr(self, name)
            if not is_whole(size) or size < 1:
                raise ValueError(f"{name}={size!r:.60}; expected a positive integer")
            object.__setattr__(self, name, int(size))
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype={self.dtype}; expected one of {', '.join(map(str, DTYPES))}")

    @cached_property
    def planes(self) -> int:
        """Number of planes."""
        return 2 * self.layers if self.layout == Layout.slot else 2

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of one token in one plane."""
        return self.token_bytes // self.planes

    @cached_property
    def token_bytes(self) -> int:
        """Bytes of one token in all planes."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.dtype.itemsize

    @property
    def static_bytes(self) -> int:
        """Bytes of a cache with every slot allocated at full length."""
        return self.slots * self.max_len * self.token_bytes

    def page_rows(self, length: int, page: int) -> int:
        """Return how many page rows hold the first `length` tokens of a slot."""
        return -(-length * self.row_bytes // page)

    def slot_bytes(self, page: int) -> int:
        """Return the bytes of addresses of a slot in one plane, in whole pages.

        This is one page more than the slot can fill. The last page is never mapped, so that an
        access beyond the slot's end does not reach the next slot.
        """
        return (self.page_rows(self.max_len, page) + 1) * page

    def reserved_bytes(self, page: int) -> int:
        """Return the bytes of addresses of the whole cache."""
        return self.planes * self.slots * self.slot_bytes(page)

    def offset(self, plane: int, slot: int, page: int) -> int:
        """Return where a slot begins in a plane, in bytes."""
        return (plane * self.slots + slot) * self.slot_bytes(page)

    def place(self, layer: int, values: bool, page: int) -> tuple[int, tuple[int, ...]]:
        """Return where the keys or values of a layer begin, and their strides.

        Returns
        -------
        offset : int
            In bytes.
        strides : tuple of int
            In elements, for a tensor of shape ``[slots, max_len, kv_heads, head_dim]``.
        """
        size = self.dtype.itemsize
        strides = self.slot_bytes(page) // size, self.row_bytes // size, self.head_dim, 1
        if self.layout == Layout.slot:
            return self.offset(2 * layer + values, 0, page), strides
        return self.offset(values, 0, page) + layer * self.kv_heads * self.head_dim * size, strides


def committed_bytes(lengths: Iterable[int], geometry: Geometry, page: int) -> int:
    """Return the bytes of pages for slots of these lengths, with nothing shared or spare.

    Parameters
    ----------
    lengths : iterable of int
        Tokens in each slot.
    geometry : Geometry
    page : int
        Bytes of a page.
    """
    rows = sum(geometry.page_rows(length, page) for length in lengths)
    return rows * geometry.planes * page
