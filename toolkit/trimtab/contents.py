"""What tensors and artifacts hold, as bytes and in short, so that a change of them shows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

PIECE = 2**24  # bytes that are hashed at a time, of a tensor with rows no longer than that


def bytes_of(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor's entries, row by row, copied only where they lie otherwise."""
    flat: Any = tensor.detach().flatten().cpu().view(torch.uint8).numpy()
    return memoryview(flat)


def digests(tensors: Collection[Tensor]) -> Iterator[bytes]:
    """Yield a digest of the entries of each tensor, whatever its dtype, shape and place are.

    That is the SHA-256 over those of its pieces, which are whole rows of `PIECE` bytes, or one row
    that is longer. PyTorch's number of threads hash them at once, so that no more pieces than that
    are copied from a GPU, or from where they lie otherwise than row by row.
    """
    for device in {tensor.device for tensor in tensors if tensor.is_cuda}:
        torch.cuda.synchronize(device)  # what this thread has begun there, the others do not see
    pool = ThreadPoolExecutor(torch.get_num_threads())
    try:
        hashed = [[pool.submit(_hashed, piece) for piece in _pieces(one)] for one in tensors]
        for pieces in hashed:
            yield hashlib.sha256(b"".join(piece.result() for piece in pieces)).digest()
    finally:
        pool.shutdown(cancel_futures=True)


def _pieces(tensor: Tensor) -> Iterable[Tensor]:
    rows = torch.atleast_1d(tensor.detach())
    length = rows[:1].nbytes
    return rows.split(max(PIECE // length, 1)) if length else [rows]


def _hashed(piece: Tensor) -> bytes:
    return hashlib.sha256(bytes_of(piece)).digest()


def summaries(
    values: Mapping[str, Any], tensors: Mapping[str, Any], files: Mapping[str, bytes]
) -> dict[str, object]:
    """Return something short of every part that differs once the part does.

    Parameters
    ----------
    values : mapping of str to object
        JSON values.
    tensors : mapping of str to Tensor
    files : mapping of str to bytes

    Returns
    -------
    dict of str to object
        By the part's name; that of a tensor or a file has its kind before it.
    """
    known = {name: one for name, one in tensors.items() if isinstance(one, Tensor)}
    hashed = dict(zip(known, digests(known.values()), strict=True))

    def of(name: str) -> object:
        one = tensors[name]
        return (one.dtype, one.shape, hashed[name]) if name in hashed else repr(one)

    return {
        **{name: _sha256(_json(value)) for name, value in values.items()},
        **{f"tensors[{name!r}]": of(name) for name in tensors},
        **{f"files[{name!r}]": _sha256(content) for name, content in files.items()},
    }


def differences(first: Mapping[str, object], second: Mapping[str, object]) -> list[str]:
    """Return the names of parts that two summaries do not both have alike."""
    return [name for name in {**first, **second} if first.get(name) != second.get(name)]


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, default=repr).encode()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
