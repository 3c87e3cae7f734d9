"""Checks of the operators' arguments where no C++ runs; cpu.cpp has the same messages."""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_topk(x: Tensor, keep: int) -> None:
    _check_activations(x)
    if not 0 <= keep <= x.shape[-1]:
        raise ValueError(f"keep={keep} is outside [0, {x.shape[-1]}]")


def check_above(x: Tensor, threshold: float, cap: int | None) -> None:
    _check_activations(x)
    _check_threshold(threshold)
    if cap is not None and cap < 0:
        raise ValueError(f"cap={cap}; expected at least 0 or None")


def check_linear(x: Tensor, weight: Tensor, bias: Tensor | None, threshold: float) -> None:
    _check_activations(x)
    _check_threshold(threshold)
    _check_matrix(x, weight)
    _check_kind("weight", weight, x)
    if bias is not None:
        if bias.dim() != 1 or bias.shape[0] != weight.shape[1]:
            raise ValueError(f"bias has shape {list(bias.shape)}; expected [{weight.shape[1]}]")
        _check_kind("bias", bias, x)


def check_int8(x: Tensor, weight: Tensor, scale: Tensor) -> None:
    _check_activations(x)
    _check_matrix(x, weight)
    if weight.dtype != torch.int8 or weight.device != x.device:
        raise ValueError(
            f"weight is {weight.dtype} on {weight.device}; expected torch.int8 on {x.device}"
        )
    shape = [weight.shape[1]]
    if scale.dtype != torch.float32 or scale.device != x.device or list(scale.shape) != shape:
        raise ValueError(
            f"scale is {scale.dtype} of shape {list(scale.shape)} on {scale.device}; "
            f"expected torch.float32 of shape {shape} on {x.device}"
        )


def _check_activations(x: Tensor) -> None:
    if x.dtype not in DTYPES:
        raise ValueError(f"x is {x.dtype}; expected float32, bfloat16, float16 or float64")
    if x.dim() < 1:
        raise ValueError("x has no dimension; expected [..., d]")


def _check_matrix(x: Tensor, weight: Tensor) -> None:
    if weight.dim() != 2 or weight.shape[0] != x.shape[-1]:
        raise ValueError(
            f"weight has shape {list(weight.shape)}; "
            f"expected [{x.shape[-1]}, n] for x of shape {list(x.shape)}"
        )
    if weight.shape[1] > 1 and weight.stride(1) != 1:
        raise ValueError(
            f"weight has strides {list(weight.stride())}; "
            "expected contiguous rows, one for each entry of x"
        )


def _check_threshold(threshold: float) -> None:
    if not threshold >= 0:
        raise ValueError(f"threshold={threshold}; expected a number of at least 0")


def _check_kind(name: str, tensor: Tensor, x: Tensor) -> None:
    if tensor.dtype != x.dtype or tensor.device != x.device:
        raise ValueError(
            f"{name} is {tensor.dtype} on {tensor.device}; expected {x.dtype} on {x.device} as x is"
        )
