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

KEYS = SAVE, RESIZE, CONVERT = (
    "save_pretrained", "resize_token_embeddings", "_apply",  # `to`, `half`, ... call the latter
)  # fmt: skip


@undone_in_order
def refusing(model: nn.Module, name: str) -> Iterator[None]:
    """Have a model refuse to be saved, resized, cast and moved for the time of the ``with``.

    Weights that are not in the model meanwhile would be missing in what is saved, and would come
    back in their former dtype, where they were. So each module of the model refuses to be cast and
    moved, also one that is put aside meanwhile.

    Parameters
    ----------
    name : str
        Of the method that has changed the model.
    """
    modules = list(model.modules())
    reason = f"{name} is at work on the model, or was when this copy was made"
    before = [{key: vars(one)[key] for key in KEYS if key in vars(one)} for one in modules]
    _refuse_to(
        RESIZE,
        model,
        f"{reason}, and it goes back to the rows that it had: leave the `with` of {name} before "
        "resizing or copying the model, and calibrate again",
    )
    refuse_to_save(
        model,
        f"{reason}, and its weights are not its own meanwhile: leave the `with` of {name} before "
        "saving or copying the model, or save what it makes of the model with Artifact.export",
    )
    for one in modules:
        vars(one)[CONVERT] = partial(_convert, one, name, reason)
    try:
        yield
    finally:
        for one, own in zip(modules, before, strict=True):
            for key in KEYS:
                vars(one).pop(key, None)
            vars(one).update(own)


def refuse_to_save(model: nn.Module, reason: str) -> None:
    """Have ``save_pretrained`` of a model and those within it raise `MisfitError` from now on."""
    _refuse_to(SAVE, model, reason)


def _refuse_to(key: str, model: nn.Module, reason: str) -> None:
    for one in model.modules():
        if hasattr(one, key):
            vars(one)[key] = partial(_refuse, reason)


def _refuse(reason: str, *args: Any, **kwargs: Any) -> NoReturn:
    raise MisfitError(reason)


def _convert(
    module: nn.Module,
    name: str,
    reason: str,
    function: Callable[[Tensor], Tensor],
    recurse: bool = True,
) -> nn.Module:
    """Do what ``nn.Module._apply`` does, where that changes nothing."""
    with torch.no_grad():
        for one in chain(module.parameters(recurse), module.buffers(recurse)):
            made = function(one)
            if made is not one:
                raise MisfitError(
                    f"{reason}, and a tensor in {one.dtype} on {one.device} was to become "
                    f"{made.dtype} on {made.device}: leave the `with` of {name} before casting, "
                    "moving or copying the model"
                )
    return module
