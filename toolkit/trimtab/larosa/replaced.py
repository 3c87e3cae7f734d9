"""Submodules that others stand in for, their parameters out of memory meanwhile."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, cast

import numpy as np
import torch
from torch import Tensor, nn

from trimtab.errors import TrimtabError
from trimtab.files import ROOM, made_temporary
from trimtab.interrupts import uninterrupted


@contextmanager
def aside() -> Iterator[IO[bytes]]:
    """Yield an unnamed temporary file for parameters that are not in memory, see `replaced`.

    Raises
    ------
    TrimtabError
        If there is no folder that it can be in.
    """
    with made_temporary(tempfile.TemporaryFile, "file for weights") as file:
        yield file


@contextmanager
def replaced(parent: nn.Module, name: str, module: nn.Module, file: IO[bytes]) -> Iterator[None]:
    """Put `module` in the place of the submodule `name` for the time of the ``with``.

    The parameters of the submodule are not in memory meanwhile: a file holds them, from which they
    come back bit for bit, Ctrl-C or not. They leave memory once the file has been read back, so
    that a disk that is full or fails loses nothing.

    Parameters
    ----------
    file : file
        From `aside`; one for any number of submodules.

    Raises
    ------
    TrimtabError
        If the file cannot be written. The submodule is as it was.
    """
    original = parent.get_submodule(name)
    parameters = list(original.parameters())
    try:
        start = file.seek(0, os.SEEK_END)
        _write(file, parameters)
    except OSError as error:
        size = sum(parameter.nbytes for parameter in parameters)
        raise TrimtabError(
            f"{name} cannot be moved out of memory to a temporary file, where it takes {size} "
            f"bytes: {error.strerror or error}; {ROOM} for the model"
        ) from error
    kept = [(parameter.shape, parameter.dtype, parameter.device) for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.data = parameter.new_empty(0)
        parent.set_submodule(name, module.eval())
        yield
    finally:
        with uninterrupted():
            parent.set_submodule(name, original)
            file.seek(start)
            for parameter, (shape, dtype, device) in zip(parameters, kept, strict=True):
                parameter.data = _read(file, shape, dtype).to(device)


def _write(file: IO[bytes], parameters: Sequence[Tensor]) -> None:
    """Write parameters where the file is, and read them back to see that all is there.

    Raises
    ------
    OSError
        If it is not.
    """
    start = file.tell()
    for parameter in parameters:
        _bytes_of(parameter.data.cpu()).tofile(file)
    file.flush()
    file.seek(start)
    for parameter in parameters:
        loaded = _read(file, parameter.shape, parameter.dtype)
        if not np.array_equal(_bytes_of(loaded), _bytes_of(parameter.data.cpu())):
            raise OSError("the file does not hold what was written to it")


def _read(file: IO[bytes], shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Return the tensor that comes next in a file.

    Raises
    ------
    OSError
        If the file ends before.
    """
    loaded = torch.empty(shape, dtype=dtype)
    content = np.fromfile(file, dtype=np.uint8, count=loaded.nbytes)
    if len(content) != loaded.nbytes:
        raise OSError(f"the file ends after {len(content)} of {loaded.nbytes} bytes")
    _bytes_of(loaded)[:] = content
    return loaded


def _bytes_of(tensor: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    flat = tensor.contiguous().flatten().view(torch.uint8).numpy()
    return cast("np.ndarray[tuple[int, ...], np.dtype[np.uint8]]", flat)
