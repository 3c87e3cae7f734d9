"""The first decoder layers of a model alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from typing import Any

from torch import Tensor, nn


class _Reached(Exception):  # noqa: N818
    """The last layer wanted has run: the rest of the model is not needed."""


def outputs_of(layers: Sequence[nn.Module], run: Callable[[], object]) -> list[Tensor]:
    """Return the outputs of decoder layers while `run` runs their model, up to the last of them.

    Parameters
    ----------
    layers : sequence of Module
        Layers of one model, in the order in which they run.
    run : callable
        Calls the model.

    Returns
    -------
    list of Tensor
        One for each layer, of shape [texts, tokens, width].
    """
    found: list[Tensor] = []

    def keep(layer: nn.Module, _: Any, output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)
        if layer is layers[-1]:
            raise _Reached

    with ExitStack() as hooks:
        for layer in layers:
            hooks.callback(layer.register_forward_hook(keep).remove)
        with suppress(_Reached):
            run()
    return found
