"""The files that a calibration which was killed resumes from: one a layer, for every pass.

Processes that share a calibration read the same files, and one of them writes. They are those of a
calibration by one process, so that any number of processes can go on with them.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from trimtab import shards
from trimtab.files import save_tensors
from trimtab.progress import say

FRONT = "front.safetensors"  # what the next layer of a pass starts from
PASSES = ("moments", "entering"), ("fisher",), ("residual", "costs")  # the kinds that each leaves
BACKWARD = "fisher"  # begins at the last layer


class Checkpoint:
    """What passes over the layers found, below one folder.

    Parameters
    ----------
    folder : Path
        Made with the first file.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def discard_damaged(self, layers: int) -> None:
        """Remove what a pass left where a file of it is lost or damaged, as by a loss of power.

        The other passes keep theirs: what the pass finds again is the same to the bit.

        Parameters
        ----------
        layers : int
            Decoder layers of the model.
        """
        if shards.writes():
            for kinds in PASSES:
                if damaged := next(self._damaged(kinds, layers), None):
                    say(f"{damaged} is lost or damaged: measuring its pass over the layers anew")
                    for kind in kinds:
                        shutil.rmtree(self._folder / kind, ignore_errors=True)
        shards.wait()

    def _damaged(self, kinds: Sequence[str], layers: int) -> Iterator[Path]:
        done = _layers_done(self._folder / kinds[0] / FRONT)
        indices = range(layers - done, layers) if kinds[0] == BACKWARD else range(done)
        for kind in kinds:
            found = set((self._folder / kind).glob("*.safetensors"))
            for path in sorted(found | {self._file(kind, index) for index in indices}):
                if not _is_whole(path):
                    yield path

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
        return int(shards.agreed(_layers_done(self._folder / kind / FRONT)))

    def _file(self, kind: str, index: int) -> Path:
        return self._folder / kind / f"{index:03d}.safetensors"


def _is_whole(path: Path) -> bool:
    """Return whether a file is there, with as many bytes as it says."""
    try:
        with safe_open(path, framework="pt"):
            return True
    except (SafetensorError, FileNotFoundError):
        return False


def _layers_done(front: Path) -> int:
    """Return how many layers a pass completed, by what its next layer starts from."""
    try:
        with safe_open(front, framework="pt") as file:
            return int(file.metadata()["done"])
    except (SafetensorError, FileNotFoundError):
        return 0
