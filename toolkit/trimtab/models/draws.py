"""Random numbers from a generator of one's own, also where other code draws them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

IN_PLACE = Tensor.normal_, Tensor.uniform_


class DrawingFrom(TorchFunctionMode):
    """Has modules made within the block, by this thread, draw their weights from a generator.

    PyTorch's own is one for all threads.
    """

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self._generator = generator

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        options = kwargs or {}
        if function in IN_PLACE or "generator" in options:
            options = options | {"generator": options.get("generator") or self._generator}
        return function(*args, **options)
