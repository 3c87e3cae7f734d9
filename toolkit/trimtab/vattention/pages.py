"""Pages of physical memory, the address ranges they are mapped into, and what can go wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from trimtab.errors import TrimtabError


class KVOutOfMemory(TrimtabError):  # noqa: N818
    """More pages were requested than the budget, or the machine, has left.

    Parameters
    ----------
    needed : int
        Bytes requested.
    free : int
        Bytes left.
    reclaimable : int
        Bytes that giving up cached pages would free.
    """

    def __init__(self, needed: int, free: int, reclaimable: int = 0) -> None:
        self.needed, self.free, self.reclaimable = needed, free, reclaimable
        super().__init__(
            f"the KV cache needs {needed} bytes of pages: {free} are left and {reclaimable} can be "
            "reclaimed; allow a larger budget, fewer sequences at a time, or shorter ones"
        )


class PageError(TrimtabError, RuntimeError):
    """A call of the operating system or of the driver failed.

    Parameters
    ----------
    call : str
        Name of the call.
    reason : str
        What it answered.
    """

    def __init__(self, call: str, reason: str) -> None:
        self.call = call
        super().__init__(f"{call}: {reason}")


class Access(Enum):
    """What a mapped range may be used for."""

    read = "read"
    write = "read and write"


@dataclass(eq=False)
class Page:
    """One page of physical memory.

    Attributes
    ----------
    handle : int
        The backend's name for it.
    references : int
        Its mappings, and one more until its creator releases it.
    mappings : int
        At how many addresses it is mapped.
    """

    handle: int
    references: int = 1
    mappings: int = 0


@dataclass(eq=False)
class Reservation:
    """A range of addresses, and what is mapped into it.

    Attributes
    ----------
    address, nbytes : int
    pages : dict of int to Page
        By offset in bytes.
    tensors : int
        How many tensors over the range are still alive.
    """

    address: int
    nbytes: int
    pages: dict[int, Page] = field(default_factory=dict)
    tensors: int = 0


@dataclass(frozen=True)
class PoolStats:
    """What a pool holds, in bytes unless stated otherwise.

    Attributes
    ----------
    budget : int or None
        The most that may be committed.
    committed : int
        Physical pages, each counted once.
    mapped : int
        Addresses backed by pages; a page mapped twice counts twice.
    reserved : int
        Addresses of all reservations.
    handles : int
        Number of physical pages.
    references : int
        Number of references to them.
    measured : int
        Physical memory as counted by the operating system or the driver.
    """

    budget: int | None
    committed: int
    mapped: int
    reserved: int
    handles: int
    references: int
    measured: int


class Fence(Protocol):
    """A mark in the order of a device's work."""

    def wait(self) -> None:
        """Return when all work before the mark is done."""
