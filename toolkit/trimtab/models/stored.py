"""What the files of a checkpoint hold, whatever is made of it when it is loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, cast
from zipfile import is_zipfile

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import safe_open
from transformers.utils import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
)

from trimtab.errors import TrimtabError

FILES = SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME
"""Of these transformers reads the first that is there."""
INDICES = {SAFE_WEIGHTS_NAME: SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME: WEIGHTS_INDEX_NAME}
FLOATS = {"F64", "F32", "F16", "BF16", "float64", "float32", "float16", "bfloat16"}
"""Types that a weight is cast from without a scale, as safetensors and PyTorch call them."""


class Stored(NamedTuple):
    """A tensor in a file: its type, as the file says it, and its shape."""

    dtype: str
    shape: torch.Size


def stored_tensors(name: str | Path, revision: str | None) -> dict[str, Stored]:
    """Return the types and shapes of a checkpoint's tensors.

    Parameters
    ----------
    name : str or Path
        A folder, or a model on the hub that has been downloaded.
    revision : str or None
        Of a model on the hub.

    Returns
    -------
    dict of str to Stored
        By their names in the files.

    Raises
    ------
    TrimtabError
        If two files hold different tensors of one name: transformers takes either.
    """
    files = (_file(name, file, revision) for file in FILES)
    first = next((path for path in files if path is not None), None)
    if first is None:
        return {}
    parts = [] if first.suffix == ".json" else [first]
    # Beside a whole file, an index of the same format is of another save, older or newer.
    if index := _file(name, INDICES.get(first.name, first.name), revision):
        shards = json.loads(index.read_text("utf-8"))["weight_map"].values()
        files = (_file(name, file, revision) for file in sorted(set(shards)))
        parts += [path for path in files if path is not None]
    found: dict[str, Stored] = {}
    places: dict[str, Path] = {}
    for path in parts:
        for tensor, one in _tensors(path):
            if tensor in found and not _alike(tensor, places[tensor], path):
                raise TrimtabError(
                    f"{places[tensor].name} and {path.name} both hold {tensor}, and not alike: "
                    "download the checkpoint again, or save it into an empty folder"
                )
            found[tensor], places[tensor] = one, path
    return found


def _alike(name: str, *paths: Path) -> bool:
    """Return whether files of weights hold the same tensor of a name."""
    one, other = (_read(path, name) for path in paths)
    return one.dtype == other.dtype and torch.equal(one, other)


def _read(path: Path, name: str) -> torch.Tensor:
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            return cast(torch.Tensor, file.get_tensor(name))
    tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))
    return cast(torch.Tensor, tensors[name])


def _file(name: str | Path, file: str, revision: str | None) -> Path | None:
    """Return where a file of a checkpoint is, None where there is none."""
    if Path(name).is_dir():
        path = Path(name) / file
        return path if path.is_file() else None
    found = try_to_load_from_cache(str(name), file, revision=revision)
    return Path(found) if isinstance(found, str) else None


def _tensors(path: Path) -> Iterator[tuple[str, Stored]]:
    """Yield a file's tensors by their names; their contents are not read."""
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (it has no iterator)
                tensor = file.get_slice(name)
                yield name, Stored(tensor.get_dtype(), torch.Size(tensor.get_shape()))
        return
    tensors = torch.load(path, map_location="meta", weights_only=True, mmap=is_zipfile(path))
    for name, tensor in tensors.items():
        if isinstance(tensor, torch.Tensor):
            yield name, Stored(str(tensor.dtype).removeprefix("torch."), tensor.shape)
