"""The files that a calibration which was killed resumes from: one a layer, for every pass.

Processes that share a calibration read the same files, and one of them writes. They are those of a
calibration by one process, so that any number of processes can go on with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from trimtab import shards
from trimtab.files import save_tensors

FRONT = "front.safetensors"  # what the next layer of a pass starts from


class Checkpoint:
    """What passes over the layers found, below one folder.

    Parameters
    ----------
    folder : Path
        Made with the first file.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, kind: str, index: int, found: Mapping[str, Tensor]) -> None:
        """Keep what a pass found at one layer."""
        if shards.writes():
            save_tensors(self._file(kind, index), found)

    def load(self, kind: str, index: int) -> dict[str, Tensor]:
        """Return what a pass found at one layer."""
        return load_file(self._file(kind, index))

    def has(self, kind: str, index: int) -> bool:
        """Return whether there is what a pass found at one layer."""
        return self._file(kind, index).exists()

    def save_front(self, kind: str, hidden: Tensor, done: int) -> None:
        """Keep what the next layer of a pass starts from, after `done` layers of all windows."""
        if shards.writes():
            save_tensors(self._folder / kind / FRONT, {"hidden": hidden}, done=str(done))

    def load_front(self, kind: str) -> Tensor:
        """Return what the next layer of a pass starts from, of all windows."""
        return load_file(self._folder / kind / FRONT)["hidden"]

    def done(self, kind: str) -> int:
        """Return how many layers a pass completed before it was killed."""
        done, path = 0, self._folder / kind / FRONT
        if path.exists():
            with suppress(SafetensorError), safe_open(path, framework="pt") as file:
                done = int(file.metadata()["done"])
        return int(shards.agreed(done))

    def _file(self, kind: str, index: int) -> Path:
        return self._folder / kind / f"{index:03d}.safetensors"
