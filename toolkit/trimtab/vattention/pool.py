"""Physical pages and the virtual memory they are mapped into: what all backends have in common.

A `PagePool` hands out pages of one size, counts the references to them, keeps within a budget, and
maps them into reserved ranges of addresses, one page at several addresses if asked. The rules are
written once, here, so that they hold on every device. A backend only makes the calls of its
operating system or driver, about a dozen lines each.
"""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import ClassVar, Self

import torch
from torch import Tensor

from trimtab.settings import is_whole
from trimtab.vattention.dlpack import tensor_at
from trimtab.vattention.pages import Access, Fence, KVOutOfMemory, Page, PoolStats, Reservation
from trimtab.vattention.settings import Layout


class PagePool(ABC):
    """Physical pages of one size on one device, within a budget.

    Thread-safe. After `close` every call raises `RuntimeError`, and so does every call in a forked
    child, since the pages belong to its parent. A context manager that closes the pool.

    Parameters
    ----------
    page_bytes : int
        Bytes of a page: a multiple of `granularity`.
    budget : int, optional
        The most bytes of pages at a time, in whole pages; no limit if None.

    Raises
    ------
    ValueError
        If `page_bytes` is no positive multiple of the granularity, or the budget is below one page.

    Attributes
    ----------
    backend : str
        Name of the kind of memory.
    default_layout : Layout
        Of caches for which none is chosen: the one for pages of the usual size of the backend.
    device : torch.device
        Where tensors over the pages are.
    """

    backend: ClassVar[str]
    default_layout: ClassVar[Layout]
    device: torch.device

    def __init__(self, page_bytes: int, budget: int | None = None) -> None:
        if not is_whole(page_bytes) or page_bytes <= 0 or page_bytes % self.granularity:
            raise ValueError(
                f"pages of {page_bytes!r:.60} bytes; expected a positive multiple of "
                f"{self.granularity}, the granularity of {self.backend} memory"
            )
        if budget is not None and (not is_whole(budget) or budget < page_bytes):
            raise ValueError(
                f"budget={budget!r:.60}; expected at least one page of {page_bytes} bytes"
            )
        self.page_bytes = page_bytes
        self.budget = budget
        self._lock = threading.RLock()
        self._pages: set[Page] = set()
        self._reservations: set[Reservation] = set()
        self._process = os.getpid()
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    @abstractmethod
    def granularity(self) -> int:
        """Bytes of which the size of a page must be a multiple."""

    def layout(self, chosen: Layout | str | None) -> Layout:
        """Return the layout of a cache on these pages, given the one chosen for it, if any."""
        return self.default_layout if chosen is None else Layout(chosen)

    @property
    def free_bytes(self) -> int | None:
        """Bytes left of the budget, in whole pages; None without a budget."""
        if self.budget is None:
            return None
        return (self.budget // self.page_bytes - len(self._pages)) * self.page_bytes

    def reserve(self, nbytes: int) -> Reservation:
        """Reserve a range of addresses, in whole pages, with nothing mapped there."""
        with self._exclusive():
            self._check_range(nbytes, 0, nbytes)
            reservation = Reservation(self._reserve(nbytes), nbytes)
            self._reservations.add(reservation)
            return reservation

    def free(self, reservation: Reservation) -> None:
        """Give the addresses back.

        Raises
        ------
        RuntimeError
            While pages are mapped there, or tensors over the range are alive.
        """
        with self._exclusive():
            self._check(reservation)
            if reservation.pages or reservation.tensors:
                raise RuntimeError(
                    f"the range at {reservation.address:#x} is in use: {len(reservation.pages)} "
                    f"pages are mapped there and {reservation.tensors} tensors over it are alive; "
                    "unmap the pages and drop the tensors first"
                )
            self._free(reservation.address, reservation.nbytes)
            self._reservations.remove(reservation)

    def create(self, places: Sequence[int]) -> list[Page]:
        """Take physical pages, all or none; the caller is to `release` each.

        Parameters
        ----------
        places : sequence of int
            For each page, the address at which it will first be mapped. A backend may choose pages
            that are cheap to map there; nothing else depends on it.

        Raises
        ------
        KVOutOfMemory
            If the budget or the machine does not have that many.
        """
        with self._exclusive(), ExitStack() as undo:
            needed = len(places) * self.page_bytes
            if self.free_bytes is not None and needed > self.free_bytes:
                raise KVOutOfMemory(needed, self.free_bytes)
            created: list[Page] = []
            for place in places:
                try:
                    page = Page(self._create(place))
                except KVOutOfMemory as error:
                    free = len(created) * self.page_bytes + error.free
                    raise KVOutOfMemory(needed, free) from error
                undo.callback(self._destroy, page.handle)
                created.append(page)
            undo.pop_all()
            self._pages.update(created)
            return created

    def release(self, page: Page) -> None:
        """Give up the creator's reference; the page is destroyed once it is mapped nowhere.

        Raises
        ------
        ValueError
            If it was given up before.
        """
        with self._exclusive():
            self._check_page(page)
            if page.references == page.mappings:
                raise ValueError("only its mappings refer to the page; unmap it instead")
            self._drop_reference(page)

    def map(self, reservation: Reservation, offset: int, pages: Sequence[Page]) -> None:
        """Map pages at consecutive addresses, all or none; each mapping is a reference.

        The addresses cannot be used until `protect` permits it.

        Raises
        ------
        ValueError
            If the range is not of whole pages within the reservation, or has a mapping already.
        PageError
            If the system refuses; nothing is mapped then.
        """
        with self._exclusive():
            self._check(reservation)
            self._check_range(reservation.nbytes, offset, len(pages) * self.page_bytes)
            offsets = range(offset, offset + len(pages) * self.page_bytes, self.page_bytes)
            for page in pages:
                self._check_page(page)
            taken = [at for at in offsets if at in reservation.pages]
            if taken:
                raise ValueError(f"offset {taken[0]} is mapped already; unmap it first")
            self._map(reservation.address + offset, [page.handle for page in pages])
            reservation.pages.update(zip(offsets, pages, strict=True))
            for page in pages:
                page.references += 1
                page.mappings += 1

    def protect(self, reservation: Reservation, offset: int, nbytes: int, access: Access) -> None:
        """Set what a mapped range may be used for.

        Raises
        ------
        ValueError
            If not every page of the range is mapped.
        PageError
            If the system refuses.
        """
        with self._exclusive():
            self._mapped(reservation, offset, nbytes)
            self._protect(reservation.address + offset, nbytes, access)

    def unmap(self, reservation: Reservation, offset: int, nbytes: int) -> None:
        """Unmap a range, and destroy the pages to which nothing else refers.

        The caller makes sure that no work still uses the range; see `fence`.

        Raises
        ------
        ValueError
            If not every page of the range is mapped.
        """
        with self._exclusive(), ExitStack() as rest:
            offsets = self._mapped(reservation, offset, nbytes)
            self._unmap(reservation.address + offset, nbytes)
            # Every page, even if the system refuses to destroy one of them.
            for at in offsets:
                page = reservation.pages.pop(at)
                page.mappings -= 1
                rest.callback(self._drop_reference, page)

    def tensor(
        self,
        reservation: Reservation,
        offset: int,
        shape: Sequence[int],
        strides: Sequence[int],
        dtype: torch.dtype,
    ) -> Tensor:
        """Return a tensor over reserved addresses, mapped or not.

        Touching addresses that are not mapped, or not permitted, faults, except that the host's
        read as zeros where nothing is mapped. The range cannot be freed while the tensor or a view
        of it is alive.

        Parameters
        ----------
        reservation : Reservation
        offset : int
            Of the first element, in bytes.
        shape, strides : sequence of int
            Strides in elements.
        dtype : torch.dtype

        Raises
        ------
        ValueError
            If the tensor does not lie within the reservation, or the dtype is not supported.
        """
        last = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        end = offset + (last + 1 if 0 not in shape else 0) * dtype.itemsize
        if min((offset, *shape, *strides)) < 0 or end > reservation.nbytes:
            raise ValueError(
                f"a tensor of shape {list(shape)} and strides {list(strides)} at {offset} does not "
                f"lie within the {reservation.nbytes} bytes reserved"
            )
        if offset % dtype.itemsize:
            raise ValueError(f"offset {offset}; expected a multiple of {dtype.itemsize}, {dtype}")

        def dropped() -> None:
            # In a forked child the lock may be held forever, by a thread of the parent.
            if os.getpid() == self._process:
                with self._lock:
                    reservation.tensors -= 1

        with self._exclusive():
            self._check(reservation)
            reservation.tensors += 1
            address = reservation.address + offset
            return tensor_at(address, shape, strides, dtype, self.device, dropped)

    def stats(self) -> PoolStats:
        """Return what the pool holds now."""
        with self._exclusive():
            mapped = sum(len(reservation.pages) for reservation in self._reservations)
            return PoolStats(
                budget=self.budget,
                committed=len(self._pages) * self.page_bytes,
                mapped=mapped * self.page_bytes,
                reserved=sum(reservation.nbytes for reservation in self._reservations),
                handles=len(self._pages),
                references=sum(page.references for page in self._pages),
                measured=self._measured(),
            )

    @abstractmethod
    def fence(self) -> Fence:
        """Return a mark after all work submitted so far, to wait for before unmapping."""

    def close(self) -> None:
        """Give everything back to the system; closing again does nothing.

        Raises
        ------
        RuntimeError
            While anything is reserved.
        """
        self.check_process()
        with self._lock, ExitStack() as rest:
            if self._reservations:
                raise RuntimeError(
                    f"{len(self._reservations)} ranges of addresses are still reserved in the "
                    "pool; free them first"
                )
            self._closed = True
            while self._pages:
                rest.callback(self._destroy, self._pages.pop().handle)

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        # Checked before locking: in a forked child the lock may be held forever.
        self.check_process()
        with self._lock:
            if self._closed:
                raise RuntimeError("the pool is closed; make another")
            yield

    def check_process(self) -> None:
        """Raise `RuntimeError` in a forked child."""
        if os.getpid() != self._process:
            raise RuntimeError(
                "this pool's pages belong to the process that made it; a forked child shares them "
                "and would write into its parent's cache: make the pool after forking"
            )

    def _drop_reference(self, page: Page) -> None:
        if page.references == 1:
            self._destroy(page.handle)
            self._pages.remove(page)
        page.references -= 1

    def _check(self, reservation: Reservation) -> None:
        if reservation not in self._reservations:
            raise ValueError("the range is not reserved in this pool, or was freed")

    def _check_page(self, page: Page) -> None:
        if page not in self._pages:
            raise ValueError("the page is not of this pool, or was released")

    def _check_range(self, limit: int, offset: int, nbytes: int) -> None:
        if offset % self.page_bytes or nbytes % self.page_bytes or nbytes <= 0:
            raise ValueError(
                f"offset {offset} and {nbytes} bytes; expected whole pages of {self.page_bytes}"
            )
        if not 0 <= offset <= limit - nbytes:
            raise ValueError(
                f"{nbytes} bytes at offset {offset}; expected a range within {limit} bytes"
            )

    def _mapped(self, reservation: Reservation, offset: int, nbytes: int) -> range:
        self._check(reservation)
        self._check_range(reservation.nbytes, offset, nbytes)
        offsets = range(offset, offset + nbytes, self.page_bytes)
        for at in offsets:
            if at not in reservation.pages:
                raise ValueError(f"nothing is mapped at offset {at}; map it first")
        return offsets

    # What a backend implements: addresses and handles in, `PageError` if the system refuses, and
    # `KVOutOfMemory` from `_create` if it has no memory left. Called with the lock held.

    @abstractmethod
    def _reserve(self, nbytes: int) -> int: ...

    @abstractmethod
    def _free(self, address: int, nbytes: int) -> None: ...

    @abstractmethod
    def _create(self, place: int) -> int: ...

    @abstractmethod
    def _destroy(self, handle: int) -> None: ...

    @abstractmethod
    def _map(self, address: int, handles: Sequence[int]) -> None: ...

    @abstractmethod
    def _protect(self, address: int, nbytes: int, access: Access) -> None: ...

    @abstractmethod
    def _unmap(self, address: int, nbytes: int) -> None: ...

    @abstractmethod
    def _measured(self) -> int: ...
