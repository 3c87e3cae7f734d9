"""Submodules that others stand in for, their parameters out of memory meanwhile."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trimtab.errors import TrimtabError
from trimtab.interrupts import uninterrupted
from trimtab.larosa.waiting import FileStore, HostStore, Refill, Store, host_store, is_elsewhere

SPARE = 2**21  # bytes that what allocates memory may take of it at once, beyond what is asked for
NAMED = 3  # parameters that an error names, at most


@dataclass
class _Moved:
    """A parameter whose numbers wait, and what brings them back."""

    name: str
    parameter: nn.Parameter
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    refill: Refill

    def loaded(self) -> Tensor:
        """Return what the parameter held."""
        found = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        self.refill(found)
        return found


class Aside:
    """Submodules of a model that others stand in for, and where their parameters wait.

    Parameters
    ----------
    model : Module
    file : FileStore
    host : HostStore or None
        For parameters that are not on the host; they go into the file, too, where there is none.
    """

    def __init__(self, model: nn.Module, file: FileStore, host: HostStore | None) -> None:
        self._model, self._file, self._host = model, file, host
        self._originals: list[tuple[nn.Module, str, nn.Module]] = []
        self._moved: list[_Moved] = []
        self._reserved = [_reserved("the model", SPARE)]

    def replace(self, name: str, module: nn.Module) -> None:
        """Put `module` in the place of the submodule `name`.

        The parameters of the submodule leave memory once all of them wait elsewhere, and a file
        has been read back, so that a disk that is full or fails loses nothing.

        Raises
        ------
        TrimtabError
            If they have no room to wait in, or there is no address space left for when they come
            back. The submodule is as it was.
        """
        original = self._model.get_submodule(name)
        holder, attribute = _holder(self._model, name)
        parameters = dict(original.named_parameters())
        self._reserved += [
            _reserved(name, parameter.nbytes + mmap.PAGESIZE)
            for parameter in parameters.values()
            if not is_elsewhere(parameter)
        ]
        elsewhere = all(map(is_elsewhere, parameters.values()))
        store = self._host if elsewhere and self._host is not None else self._file
        try:
            moved = [_kept(store, f"{name}.{own}", one) for own, one in parameters.items()]
        except OSError as error:
            size = sum(parameter.nbytes for parameter in parameters.values())
            raise TrimtabError(
                f"{name} cannot be moved out of memory to {store.place}, where it takes {size} "
                f"bytes: {error.strerror or error}; {store.remedy} for the model"
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
                moved.parameter.data = moved.loaded()
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


@contextmanager
def aside(model: nn.Module) -> Iterator[Aside]:
    """Have submodules of a model replaced for the time of the ``with``.

    Their parameters wait meanwhile: those on the host in an unnamed temporary file, and those on a
    GPU in host memory, or in the file where that has no room for all of them. They come back bit
    for bit, Ctrl-C or not.

    Raises
    ------
    TrimtabError
        If parameters cannot be put back.
    """
    with ExitStack() as undo:
        away = Aside(model, FileStore(undo), host_store(model))
        try:
            yield away
        finally:
            with uninterrupted():
                away.put_back()


def _kept(store: Store, name: str, parameter: nn.Parameter) -> _Moved:
    """Keep what a parameter holds elsewhere; it still has it, too.

    Raises
    ------
    OSError
        If there is no room for it.
    """
    held = parameter.data
    return _Moved(name, parameter, held.shape, held.dtype, held.device, store.keep(held))


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
