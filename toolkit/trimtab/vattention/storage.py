"""The addresses of a cache, reserved for its lifetime, and the tensors over them."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import torch
from torch import Tensor

from trimtab.vattention.cuda import CudaPool
from trimtab.vattention.host import HostPool
from trimtab.vattention.layout import Geometry
from trimtab.vattention.pool import PagePool

HOST_PAGE = 64 * 1024
ADDRESSES = 1 << 47


class TensorsAlive(RuntimeError):  # noqa: N818
    """Others hold tensors over a cache, which can therefore not be closed."""


class Storage:
    """Reserved addresses in the shape of a cache; pages are mapped there by a `PageTable`.

    Parameters
    ----------
    pool : PagePool
    geometry : Geometry

    Attributes
    ----------
    keys, values : tuple of Tensor
        By layer, of shape ``[slots, max_len, kv_heads, head_dim]``.
    reservation : Reservation

    Raises
    ------
    ValueError
        If that is more addresses than a process has.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    def __init__(self, pool: PagePool, geometry: Geometry) -> None:
        self.pool = pool
        self.geometry = geometry
        nbytes = geometry.reserved_bytes(pool.page_bytes)
        if nbytes > ADDRESSES:
            raise ValueError(
                f"slots={geometry.slots} with max_len={geometry.max_len} take {nbytes} bytes of "
                f"addresses; expected at most {ADDRESSES}, all that a process has"
            )
        self.reservation = pool.reserve(nbytes)
        self._make_tensors()

    def drop_tensors(self) -> None:
        """Drop the tensors, for good.

        Raises
        ------
        TensorsAlive
            While others hold some; none is dropped then.
        """
        self.keys = self.values = ()
        if self.reservation.tensors:
            gc.collect()  # a compiler leaves some in cycles
        alive = self.reservation.tensors
        if alive:
            self._make_tensors()
            raise TensorsAlive(
                f"{alive} tensors over the cache, or views of them, are alive; drop them first"
            )

    def _make_tensors(self) -> None:
        # Not inference tensors, even if made under `inference_mode`: outside of it, those cannot be
        # written to.
        with torch.inference_mode(False):
            self.keys = tuple(self._tensors(False))
            self.values = tuple(self._tensors(True))

    def _tensors(self, values: bool) -> Iterator[Tensor]:
        geometry = self.geometry
        shape = geometry.slots, geometry.max_len, geometry.kv_heads, geometry.head_dim
        for layer in range(geometry.layers):
            offset, strides = geometry.place(layer, values, self.pool.page_bytes)
            yield self.pool.tensor(self.reservation, offset, shape, strides, geometry.dtype)


def make_pool(device: torch.device, page_bytes: int | None, budget: int | None) -> PagePool:
    """Return a pool on a device.

    Parameters
    ----------
    device : torch.device
    page_bytes : int, optional
        If None, 64 KB on the host and the driver's granularity on a GPU.
    budget : int, optional
        The most bytes of pages at a time; no limit if None.

    Raises
    ------
    ValueError
        If the device is neither the CPU nor a GPU, or the pool refuses the page or the budget.
    TrimtabError
        If the device or its driver has no virtual memory management.
    """
    if device.type == "cuda":
        return CudaPool(page_bytes, budget, device)
    if device.type == "cpu":
        return HostPool(HOST_PAGE if page_bytes is None else page_bytes, budget)
    raise ValueError(f"device={device}; expected cpu or cuda")
