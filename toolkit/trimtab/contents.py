"""What tensors and artifacts hold, as bytes and in short, so that a change of them shows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def bytes_of(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor's entries, row by row, copied only where they lie otherwise."""
    flat: Any = tensor.detach().flatten().cpu().view(torch.uint8).numpy()
    return memoryview(flat)


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
    return {
        **{name: _sha256(_json(value)) for name, value in values.items()},
        **{f"tensors[{name!r}]": _of_tensor(one) for name, one in tensors.items()},
        **{f"files[{name!r}]": _sha256(content) for name, content in files.items()},
    }


def differences(first: Mapping[str, object], second: Mapping[str, object]) -> list[str]:
    """Return the names of parts that two summaries do not both have alike."""
    return [name for name in {**first, **second} if first.get(name) != second.get(name)]


def _of_tensor(tensor: Any) -> object:
    if not isinstance(tensor, Tensor):
        return repr(tensor)
    return tensor.dtype, tensor.shape, _sha256(bytes_of(tensor))


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, default=repr).encode()


def _sha256(content: bytes | memoryview) -> str:
    return hashlib.sha256(content).hexdigest()
