"""What a changed model refuses: what would read its weights as if they were its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from trimtab.errors import MisfitError
from trimtab.models.changes import undone_in_order

SAVE, CONVERT = "save_pretrained", "_apply"  # `to`, `half`, `cuda` and their like call the latter


@undone_in_order
def refusing(model: nn.Module, name: str) -> Iterator[None]:
    """Have a model refuse to be saved, cast and moved for the time of the ``with``.

    Weights that are not in the model meanwhile would be missing in what is saved, and would come
    back in their former dtype, where they were.

    Parameters
    ----------
    name : str
        Of the method that has changed the model.
    """
    before = {key: vars(model)[key] for key in (SAVE, CONVERT) if key in vars(model)}
    refuse_to_save(
        model,
        f"{name} is at work on the model, whose weights are not its own meanwhile: leave the "
        f"`with` of {name} first, or save what it makes of the model with Artifact.export",
    )
    vars(model)[CONVERT] = partial(_convert, model, name)
    try:
        yield
    finally:
        for key in (SAVE, CONVERT):
            del vars(model)[key]
        vars(model).update(before)


def refuse_to_save(model: nn.Module, reason: str) -> None:
    """Have ``model.save_pretrained`` raise `MisfitError` from now on."""
    vars(model)[SAVE] = partial(_refuse, reason)


def _refuse(reason: str, *args: Any, **kwargs: Any) -> NoReturn:
    raise MisfitError(reason)


def _convert(
    model: nn.Module, name: str, function: Callable[[Tensor], Tensor], recurse: bool = True
) -> nn.Module:
    """Do what ``nn.Module._apply`` does, where that changes nothing."""
    with torch.no_grad():
        for one in chain(model.parameters(recurse), model.buffers(recurse)):
            made = function(one)
            if made is not one:
                raise MisfitError(
                    f"{name} is at work on the model, which is {one.dtype} on {one.device} and was "
                    f"to become {made.dtype} on {made.device}: leave the `with` of {name} first"
                )
    return model
