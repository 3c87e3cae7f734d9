"""Gradients through a model: in float16, where small ones are rounded to zero, and on a GPU."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

LARGEST = 10  # a float16 gradient is scaled to be under 2¹⁰, and its products have 2⁶ to grow
LOSS = 20  # a loss is a mean over many tokens: it is scaled by 2²⁰
STEP, TRIES = 4, 10  # bits by which the scale is lowered where they grow more, and how often


def repeatable(device: torch.device) -> AbstractContextManager[None]:
    """Have attention that runs within the block get gradients that are the same bits every time.

    Fused attention on a GPU adds them up in another order every time, the plain one does not.
    """
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cuda" else nullcontext()


def gradients(output: Tensor, inputs: Sequence[Tensor], at_output: Tensor) -> list[Tensor]:
    """Return the gradients at `inputs`, from that at `output`.

    Of a float16 output they are taken times the largest power of two with which all are finite, and
    divided by it in float32.

    Parameters
    ----------
    at_output : Tensor
        Of the shape of `output`, in any floating-point dtype.

    Returns
    -------
    list of Tensor
        In the inputs' dtypes; in float32 where `output` is in float16.
    """
    if output.dtype != torch.float16:
        return list(torch.autograd.grad(output, inputs, at_output.to(output)))
    wide = at_output.float()
    exponent = LARGEST - math.frexp(float(wide.abs().max()))[1]
    return _finite(output, inputs, wide, exponent)


def loss_gradients(loss: Tensor, inputs: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Return the gradients of a float32 loss at float32 `inputs`, through a model in `dtype`."""
    if dtype != torch.float16:
        return list(torch.autograd.grad(loss, inputs))
    return _finite(loss, inputs, torch.ones_like(loss), LOSS)


def _finite(
    output: Tensor, inputs: Sequence[Tensor], at_output: Tensor, exponent: int
) -> list[Tensor]:
    """Return float32 gradients, taken times 2 to that exponent or less, so that all are finite."""
    for tried in range(exponent, exponent - STEP * TRIES, -STEP):
        scaled = (at_output * 2.0**tried).to(output)
        found = torch.autograd.grad(output, inputs, scaled, retain_graph=True)
        if all(part.isfinite().all() for part in found):
            break
    return [part.float() * 2.0**-tried for part in found]
