"""Pages of GPU memory, by the virtual memory management of the stock CUDA driver."""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence

import torch

from trimtab.vattention.driver import NO_MEMORY, CudaDriver, Driver, DriverError
from trimtab.vattention.pages import Access, Fence, KVOutOfMemory, Page, Reservation
from trimtab.vattention.pool import PagePool
from trimtab.vattention.settings import Layout


class CudaPool(PagePool):
    """Pages of one GPU's memory; see `PagePool`.

    A page is one allocation of the driver, mapped as a whole. Data written at one of its addresses
    is visible at the others only to work that starts after the writing kernel has finished (CUDA
    C++ Programming Guide, "Virtual Aliasing Support").

    Parameters
    ----------
    page_bytes : int, optional
        A multiple of the granularity; the granularity itself if None: 2 MB on today's GPUs.
    budget : int, optional
        See `PagePool`.
    device : str or torch.device
        The GPU; PyTorch's current one if it has no index.
    driver : Driver, optional
        Opened on `device` if None.

    Raises
    ------
    TrimtabError
        If there is no driver with virtual memory management; see `CudaDriver`.
    ValueError
        See `PagePool`.
    """

    backend = "cuda"
    # In `slot`, the first token of a model with 32 layers takes 64 pages of 2 MB.
    default_layout = Layout.mega

    def __init__(
        self,
        page_bytes: int | None = None,
        budget: int | None = None,
        device: str | torch.device = "cuda",
        driver: Driver | None = None,
    ) -> None:
        self._driver = CudaDriver(torch.device(device)) if driver is None else driver
        self.device = self._driver.device
        super().__init__(self.granularity if page_bytes is None else page_bytes, budget)
        self._available_at_start = self._available()
        held = self._reservations, self._pages
        finalizer = weakref.finalize(
            self, _abandon, self._process, self._driver, self.page_bytes, *held
        )
        # Not at the interpreter's exit: tensors may be alive then, and the driver frees everything.
        finalizer.atexit = False

    @property
    def granularity(self) -> int:
        """Bytes of which the size of a page must be a multiple, according to the driver."""
        return self._driver.granularity

    def fence(self) -> Fence:
        """Return a mark after the work in the calling thread's current CUDA stream.

        Work in other streams is not covered: have the current one wait for them first.
        """
        return self._driver.fence()

    def _reserve(self, nbytes: int) -> int:
        return self._driver.reserve(nbytes)

    def _free(self, address: int, nbytes: int) -> None:
        self._driver.free(address, nbytes)

    def _create(self, place: int) -> int:
        try:
            return self._driver.create(self.page_bytes)
        except DriverError as error:
            if error.code != NO_MEMORY:
                raise
        # PyTorch keeps what it has freed, for tensors to come.
        self._driver.empty_allocator()
        try:
            return self._driver.create(self.page_bytes)
        except DriverError as error:
            if error.code != NO_MEMORY:
                raise
            raise KVOutOfMemory(self.page_bytes, self._driver.free_memory()) from error

    def _destroy(self, handle: int) -> None:
        self._driver.release(handle)

    def _map(self, address: int, handles: Sequence[int]) -> None:
        mapped = 0
        try:
            for handle in handles:
                self._driver.map(address + mapped, self.page_bytes, handle)
                mapped += self.page_bytes
        except BaseException:
            if mapped:
                self._driver.unmap(address, mapped)
            raise

    def _protect(self, address: int, nbytes: int, access: Access) -> None:
        self._driver.set_access(address, nbytes, access)

    def _unmap(self, address: int, nbytes: int) -> None:
        # One call may cover several whole mappings, as in NVIDIA's sample vectorAddMMAP. It
        # succeeds or fails as a whole, and costs no more than for one page.
        self._driver.unmap(address, nbytes)

    def _measured(self) -> int:
        """Return the device memory in use, less what was in use when the pool was made.

        The driver counts for the device, not for the pool. What PyTorch's allocator holds is left
        out; what other processes, or libraries, have allocated or freed since then is not.
        """
        return self._available_at_start - self._available()

    def _available(self) -> int:
        """Return the device memory that is free, or PyTorch's."""
        return self._driver.free_memory() + self._driver.allocator_memory()


def _abandon(
    process: int,
    driver: Driver,
    page_bytes: int,
    reservations: set[Reservation],
    pages: set[Page],
) -> None:
    """Free what a pool holds that was dropped without being closed. No tensor is alive."""
    if os.getpid() != process:
        return
    if reservations or pages:
        driver.synchronize()
    for reservation in reservations:
        for offset in reservation.pages:
            driver.unmap(reservation.address + offset, page_bytes)
        driver.free(reservation.address, reservation.nbytes)
    for page in pages:
        driver.release(page.handle)
