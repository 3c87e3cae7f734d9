"""No operator has a derivative: they say so instead of cutting the graph silently."""

from __future__ import annotations

from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd import forward_ad


def refuse_gradients(operator: str, *tensors: Tensor | None) -> None:
    """Refuse to be a part of a graph that is differentiated.

    Raises
    ------
    NotImplementedError
        If gradients are recorded and one of the tensors requires them, or one has a tangent
        (forward mode).
    """
    if torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in tensors):
        _refuse(operator)
    if forward_ad._current_level >= 0:  # within a dual_level, as in torch.func.jvp
        for one in tensors:
            if one is not None and forward_ad.unpack_dual(one).tangent is not None:
                _refuse(operator)


def register_refusals(library: torch.library.Library, *operators: str) -> None:
    """Have operators refuse gradients where they are called by ``torch.ops``, too.

    On a CPU, until their C++ kernels are loaded: these do it without Python.
    """
    for operator in operators:
        name, _, overload = operator.partition(".")
        called = getattr(getattr(torch.ops.trimtab, name), overload or "default")
        library.impl(operator, partial(_below, operator, called), "Autograd", with_keyset=True)


def _below(
    operator: str,
    called: Any,
    keys: torch._C.DispatchKeySet,
    *arguments: Any,
    **more: Any,
) -> Any:
    given = (*arguments, *more.values())
    refuse_gradients(operator, *(one for one in given if isinstance(one, Tensor)))
    return called.redispatch(keys & torch._C._after_autograd_keyset, *arguments, **more)


def _refuse(operator: str) -> NoReturn:
    raise NotImplementedError(
        f"trimtab::{operator} has no derivative: run the model under torch.no_grad() or "
        "torch.inference_mode(), or take gradients of the unmodified model"
    )
