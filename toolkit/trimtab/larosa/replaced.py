"""Submodules that others stand in for, their parameters out of memory meanwhile."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

import torch
from torch import Tensor, nn

from trimtab.errors import ROOM, TrimtabError
from trimtab.files import made_temporary
from trimtab.interrupts import uninterrupted

PIECE = 2**20  # bytes that are read at once
SPARE = 2**21  # bytes that what allocates memory may take of it at once, beyond what is asked for
NAMED = 3  # parameters that an error names, at most


@dataclass
class _Moved:
    """A parameter that is in the file, and where in it."""

    name: str
    parameter: nn.Parameter
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    start: int


class Aside:
    """Submodules of a model that others stand in for, and the file that has their parameters.

    Parameters
    ----------
    model : Module
    file : file
        Empty, to be written and read.
    """

    def __init__(self, model: nn.Module, file: IO[bytes]) -> None:
        self._model, self._file = model, file
        self._originals: list[tuple[nn.Module, str, nn.Module]] = []
        self._moved: list[_Moved] = []
        self._piece = bytearray(PIECE)
        self._reserved = [_reserved("the model", SPARE)]

    def replace(self, name: str, module: nn.Module) -> None:
        """Put `module` in the place of the submodule `name`.

        The parameters of the submodule leave memory once the file has been read back, so that a
        disk that is full or fails loses nothing.

        Raises
        ------
        TrimtabError
            If the file cannot be written, or there is no address space left for when the
            parameters come back. The submodule is as it was.
        """
        original = self._model.get_submodule(name)
        holder, attribute = _holder(self._model, name)
        parameters = dict(original.named_parameters())
        self._reserved += [
            _reserved(name, parameter.nbytes + mmap.PAGESIZE)
            for parameter in parameters.values()
            if parameter.device.type == "cpu"
        ]
        try:
            moved = [self._written(f"{name}.{own}", one) for own, one in parameters.items()]
        except OSError as error:
            size = sum(parameter.nbytes for parameter in parameters.values())
            raise TrimtabError(
                f"{name} cannot be moved out of memory to a temporary file, where it takes {size} "
                f"bytes: {error.strerror or error}; {ROOM} for the model"
            ) from error
        self._moved += moved
        self._originals.append((holder, attribute, original))
        for parameter in parameters.values():
            parameter.data = parameter.new_empty(0)
        setattr(holder, attribute, module.eval())

    def put_back(self) -> None:
        """Put the submodules back, and then their parameters, once what stood in has left memory.

        It takes no file, and no memory or address space but what `replace` has set apart. They go
        back into the modules that they were taken from, wherever in the model those are by now.

        Raises
        ------
        TrimtabError
            If some parameters cannot be put back; the others are.
        """
        for reserved in self._reserved:
            reserved.close()
        for holder, attribute, original in reversed(self._originals):
            setattr(holder, attribute, original)
        lost: list[str] = []
        reason: Exception | None = None
        for moved in reversed(self._moved):
            try:
                moved.parameter.data = self._loaded(moved)
            except (OSError, RuntimeError, MemoryError) as error:
                lost.append(moved.name)
                reason = reason or error
        if lost:
            more = f" and {len(lost) - NAMED} more" if len(lost) > NAMED else ""
            said = str(reason).partition("\n")[0]
            raise TrimtabError(
                f"{', '.join(lost[:NAMED])}{more}: the weights cannot be put back into memory "
                f"({said}): load the model again"
            ) from reason

    def _written(self, name: str, parameter: nn.Parameter) -> _Moved:
        """Write a parameter at the end of the file, and read it back to see that all is there.

        Raises
        ------
        OSError
            If it is not.
        """
        start = self._file.seek(0, os.SEEK_END)
        content = _bytes_of(parameter.data.cpu())
        content.numpy().tofile(self._file)
        self._file.flush()
        for place, piece in self._pieces(start, len(content)):
            if not torch.equal(content[place : place + len(piece)], piece):
                raise OSError("the file does not hold what was written to it")
        return _Moved(name, parameter, parameter.shape, parameter.dtype, parameter.device, start)

    def _loaded(self, moved: _Moved) -> Tensor:
        """Return what a parameter held."""
        loaded = torch.empty(moved.shape, dtype=moved.dtype, device=moved.device)
        content = _bytes_of(loaded)
        for place, piece in self._pieces(moved.start, len(content)):
            content[place : place + len(piece)] = piece
        return loaded

    def _pieces(self, start: int, size: int) -> Iterator[tuple[int, Tensor]]:
        """Yield what the file has from `start` on, in pieces, and where in it they begin.

        A piece is there until the next one.
        """
        for place in range(0, size, PIECE):
            count = min(PIECE, size - place)
            _read(self._file, start + place, memoryview(self._piece)[:count])
            yield place, torch.frombuffer(self._piece, dtype=torch.uint8, count=count)


@contextmanager
def aside(model: nn.Module) -> Iterator[Aside]:
    """Have submodules of a model replaced for the time of the ``with``.

    An unnamed temporary file holds their parameters meanwhile, from which they come back bit for
    bit, Ctrl-C or not.

    Raises
    ------
    TrimtabError
        If there is no folder that the file can be in, or parameters cannot be put back.
    """
    with made_temporary(tempfile.TemporaryFile, "file for weights") as file:
        away = Aside(model, file)
        try:
            yield away
        finally:
            with uninterrupted():
                away.put_back()


def _holder(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Return the module that a submodule is a part of, and as what; no wrapper around that one."""
    above, _, attribute = name.rpartition(".")
    part = model.get_submodule(name)
    holders = model.get_submodule(above).modules()
    return next(one for one in holders if one._modules.get(attribute) is part), attribute


def _reserved(name: str, size: int) -> mmap.mmap:
    """Return address space that is not touched, so that it takes no memory.

    Raises
    ------
    TrimtabError
        If there is none.
    """
    try:
        return mmap.mmap(-1, size, access=mmap.ACCESS_COPY)
    except OSError as error:
        raise TrimtabError(
            f"{name} cannot be moved out of memory: {error.strerror or error}, where {size} bytes "
            "of address space are set apart for its coming back; raise the limit (ulimit -v)"
        ) from error


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


def _bytes_of(tensor: Tensor) -> Tensor:
    return tensor.contiguous().flatten().view(torch.uint8)
