"""How much PyTorch has to run, and to hold at a time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Counting(TorchDispatchMode):
    """Counts the operations within the block, every one of which a GPU may be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        self.operations += 1
        return function(*args, **(kwargs or {}))


class Peak(TorchDispatchMode):
    """Notes the most bytes of tensors at a time that operations within the block read or make.

    Parameters
    ----------
    held : iterable of Tensor
        Tensors that are there from the start.

    Attributes
    ----------
    most : int
        Bytes, without those that were there.
    """

    def __init__(self, held: Iterable[Tensor]) -> None:
        super().__init__()
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}
        self._note([*held])
        self._before = self._now()
        self.most = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        made = function(*args, **(kwargs or {}))
        self._live = {key: one for key, one in self._live.items() if not one[0].expired()}
        self._note((args, kwargs, made))
        self.most = max(self.most, self._now() - self._before)
        return made

    def _note(self, values: Any) -> None:
        for value in tree_leaves(values):
            if isinstance(value, Tensor) and not value.is_meta:
                storage = value.untyped_storage()
                self._live[storage._cdata] = StorageWeakRef(storage), storage.nbytes()

    def _now(self) -> int:
        return sum(size for _, size in self._live.values())
