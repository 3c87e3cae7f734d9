"""Where the numbers of parameters wait that others stand in for: in a file, or in host memory."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import IO, Protocol

import torch
from torch import Tensor, nn

from trimtab import shards
from trimtab.environment import available_host_bytes
from trimtab.errors import ROOM, first_line
from trimtab.files import made_temporary
from trimtab.progress import say

PIECE = 2**20  # bytes of a file that are read at once
SLAB = 2**28  # bytes of host memory that are taken at once; PyTorch locks powers of two
SHARE = 0.75  # of the host memory that is available, what weights may take

Refill = Callable[[Tensor], None]


class Store(Protocol):
    """What keeps the numbers of tensors.

    Attributes
    ----------
    place, remedy : str
        Where they go, and what helps where that fails.
    """

    place: str
    remedy: str

    def keep(self, tensor: Tensor) -> Refill:
        """Keep what a tensor holds.

        Returns
        -------
        callable
            It fills a contiguous tensor of the same shape and dtype, on any device, with that.

        Raises
        ------
        OSError
            If it cannot be kept.
        """


class FileStore:
    """An unnamed temporary file, made with the first tensor, as a `Store`.

    Parameters
    ----------
    undo : ExitStack
        Closes it.
    """

    place, remedy = "a temporary file", ROOM

    def __init__(self, undo: ExitStack) -> None:
        self._undo = undo
        self._file: IO[bytes] | None = None
        self._piece = bytearray(PIECE)

    def keep(self, tensor: Tensor) -> Refill:
        """Write a tensor at the end of the file, and read it back to see that all is there.

        Raises
        ------
        OSError
            If it is not.
        TrimtabError
            If there is no folder that the file can be in.
        """
        if self._file is None:
            make = made_temporary(tempfile.TemporaryFile, "file for weights")
            self._file = self._undo.enter_context(make)
        start = self._file.seek(0, os.SEEK_END)
        content = bytes_of(tensor.cpu())
        content.numpy().tofile(self._file)
        self._file.flush()
        for place, piece in self._pieces(self._file, start, len(content)):
            if not torch.equal(content[place : place + len(piece)], piece):
                raise OSError("the file does not hold what was written to it")
        return partial(self._refill, self._file, start)

    def _refill(self, file: IO[bytes], start: int, tensor: Tensor) -> None:
        content = bytes_of(tensor)
        for place, piece in self._pieces(file, start, len(content)):
            content[place : place + len(piece)] = piece

    def _pieces(self, file: IO[bytes], start: int, size: int) -> Iterator[tuple[int, Tensor]]:
        """Yield what the file has from `start` on, in pieces, and where in it they begin.

        A piece is there until the next one.
        """
        for place in range(0, size, PIECE):
            count = min(PIECE, size - place)
            _read(file, start + place, memoryview(self._piece)[:count])
            yield place, torch.frombuffer(self._piece, dtype=torch.uint8, count=count)


class HostStore:
    """Host memory, as a `Store` for tensors on a GPU.

    It is page-locked for those of CUDA, which copies are fastest from and to, unless the system
    locks no more. PyTorch keeps what it has locked, for the next time.

    Parameters
    ----------
    slab : int
        Bytes that are taken at once; tensors lie one after the other in them, across them.
    """

    place, remedy = "host memory", "leave more of it free"

    def __init__(self, slab: int) -> None:
        self._slab = slab
        self._room = torch.empty(0, dtype=torch.uint8, device="cpu")

    def keep(self, tensor: Tensor) -> Refill:
        """Copy a tensor.

        Raises
        ------
        OSError
            If there is no memory for it.
        """
        rest, parts = bytes_of(tensor), []
        while len(rest):
            if not len(self._room):
                self._room = _host_memory(self._slab, locked=tensor.is_cuda)
            size = min(len(self._room), len(rest))
            parts.append(self._room[:size].copy_(rest[:size]))
            self._room, rest = self._room[size:], rest[size:]
        return partial(_refill, parts)


def host_store(model: nn.Module) -> HostStore | None:
    """Return where on the host a model's parameters on GPUs can wait; None where there is no room.

    That is said. Of processes that share a calibration each takes its part of the memory.
    """
    needed = sum(one.nbytes for one in model.parameters() if is_elsewhere(one))
    if not needed:
        return None
    room = SHARE * (available_host_bytes() + _locked_bytes()) / shards.count()
    if needed > room:
        say(
            f"Weights on a GPU wait in a temporary file: they take {needed / 2**30:.1f} GiB, and "
            f"host memory has {room / 2**30:.1f} GiB for them"
        )
        return None
    return HostStore(min(SLAB, needed))


def is_elsewhere(parameter: Tensor) -> bool:
    """Say whether a parameter takes another device's memory, so that the host's is free of it."""
    return parameter.device.type != "cpu"


def bytes_of(tensor: Tensor) -> Tensor:
    """Return the bytes of a tensor's entries, row by row, copied only where they lie otherwise."""
    return tensor.contiguous().flatten().view(torch.uint8)


def _locked_bytes() -> int:
    """Return how much memory PyTorch has locked and not handed out."""
    found = torch.cuda.host_memory_stats()
    names = "allocated_bytes.current", "active_bytes.current"
    locked, used = (int(found.get(name, 0)) for name in names)
    return locked - used


def _host_memory(size: int, *, locked: bool) -> Tensor:
    if locked:
        with suppress(RuntimeError):  # the system locks no more
            return torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=True)
    try:
        return torch.empty(size, dtype=torch.uint8, device="cpu")
    except RuntimeError as error:
        raise OSError(errno.ENOMEM, first_line(error)) from error


def _refill(parts: Sequence[Tensor], tensor: Tensor) -> None:
    for own, part in zip(bytes_of(tensor).split([len(one) for one in parts]), parts, strict=True):
        own.copy_(part)


def _read(file: IO[bytes], start: int, into: memoryview) -> None:
    """Read what a file has from `start` on, wherever its own position is.

    Raises
    ------
    OSError
        If the file ends before.
    """
    while into:
        count = os.preadv(file.fileno(), [into], start)
        if not count:
            raise OSError(f"the file ends at byte {start}, {len(into)} too early")
        into, start = into[count:], start + count
