"""No operator has a derivative: they say so instead of cutting the graph silently."""

from __future__ import annotations

import torch
from torch import Tensor


def refuse_gradients(operator: str, *tensors: Tensor | None) -> None:
    """Refuse to be a part of a graph that is differentiated.

    Raises
    ------
    NotImplementedError
        If gradients are recorded, and one of the tensors requires them.
    """
    if torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in tensors):
        raise NotImplementedError(
            f"trimtab::{operator} has no derivative: run the model under torch.no_grad() or "
            "torch.inference_mode(), or take gradients of the unmodified model"
        )
