"""What a norm does, whichever class it has, in float64.

Every norm of a supported architecture is ``weight * (x - mean) / sqrt(variance + epsilon) + bias``
over the last dimension. RMSNorm subtracts no mean, takes the mean square for the variance and has
no bias.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm

GEMMA_NORMS = (Gemma2RMSNorm, Gemma3RMSNorm)


def norm_weight(norm: nn.Module) -> Tensor:
    """Return what each normalised entry is multiplied by, float64 of shape [width].

    Gemma's norms store the difference from one.
    """
    weight = norm.weight
    assert isinstance(weight, Tensor)
    return 1 + weight.double() if isinstance(norm, GEMMA_NORMS) else weight.double()


def norm_bias(norm: nn.Module) -> Tensor | None:
    """Return what is added at the end, float64 of shape [width], or None."""
    return norm.bias.double() if isinstance(norm, nn.LayerNorm) else None


def centers(norm: nn.Module) -> bool:
    """Return whether the norm subtracts the mean of the entries."""
    return isinstance(norm, nn.LayerNorm)


def norm_epsilon(norm: nn.Module) -> float:
    """Return what is added to the variance."""
    named = isinstance(norm, (nn.LayerNorm, nn.RMSNorm, *GEMMA_NORMS))
    return float(cast(float, norm.eps if named else norm.variance_epsilon))


def normalised(norm: nn.Module, x: Tensor) -> Tensor:
    """Return what the norm makes of `x` before its weight and bias, in float32 or wider."""
    wide = x.double() if x.dtype == torch.float64 else x.float()
    if centers(norm):
        wide = wide - wide.mean(-1, keepdim=True)
    return wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + norm_epsilon(norm))
