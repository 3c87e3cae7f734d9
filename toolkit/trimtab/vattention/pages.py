"""Pages of physical memory, the ranges of addresses they are mapped into, and what can go wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from trimtab.errors import TrimtabError


class KVOutOfMemory(TrimtabError):  # noqa: N818
    """Pages were asked for that the budget, or the machine, does not have.

    Parameters
    ----------
    needed, free, reclaimable : int
        Bytes asked for, bytes left, and bytes that giving up cached pages would bring back.
    """

    def __init__(self, needed: int, free: int, reclaimable: int = 0) -> None:
        self.needed, self.free, self.reclaimable = needed, free, reclaimable
        super().__init__(
            f"the KV cache needs {needed} bytes of pages: {free} are left and {reclaimable} can be "
            "reclaimed; allow a larger budget, fewer sequences at a time, or shorter ones"
        )


class PageError(RuntimeError):
    """A call of the operating system or of the driver that failed.

    Parameters
    ----------
    call, reason : str
        Name of the call, and what it answered.
    """

    def __init__(self, call: str, reason: str) -> None:
        self.call = call
        super().__init__(f"{call}: {reason}")


class Access(Enum):
    """What a mapped range may be used for."""

    none = "none"
    read = "read"
    write = "read and write"


@dataclass(eq=False)
class Page:
    """One page group of physical memory; `handle` is the backend's name for it.

    `mappings` of the `references` are those of mappings.
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
        By offset in bytes; a mapped page is referred to by its mapping.
    tensors : int
        Tensors over the range that are still alive.
    """

    address: int
    nbytes: int
    pages: dict[int, Page] = field(default_factory=dict)
    tensors: int = 0


@dataclass(frozen=True)
class PoolStats:
    """What a pool holds, in bytes, and the handles behind it.

    Attributes
    ----------
    budget : int or None
        The most that may be committed.
    committed : int
        Physical pages, each counted once.
    mapped : int
        Address space that pages stand behind; a page mapped twice counts twice.
    reserved : int
        Address space of all reservations.
    handles, references : int
    measured : int
        Physical bytes as the operating system or the driver counts them.
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
