"""Which implementation of an operator runs on which device."""

from __future__ import annotations

import torch
from torch import Tensor

from trimtab_kernels import reference
from trimtab_kernels.sparse_linear import cpu
from trimtab_kernels.sparse_linear.checks import check_above, check_int8, check_linear, check_topk

TRITON_DTYPES = (torch.float16, torch.bfloat16)
TRITON_TOKENS = 1
"""How many tokens the Triton product that skips weight rows takes."""


def register(library: torch.library.Library) -> None:
    """Register the implementations for GPUs, and the default for all other devices.

    The default is registered as CompositeExplicitAutograd, to which PyTorch falls back. On a CPU it
    runs until the first call has loaded the C++ kernels; later calls reach those directly, without
    Python.
    """
    for key, kernels in (("CUDA", _GPU), ("CompositeExplicitAutograd", _DEFAULT)):
        for name, kernel in kernels.items():
            library.impl(name, kernel, key)


def _keep_topk(x: Tensor, keep: int) -> Tensor:
    if _loads_cpu_kernels(x):
        return torch.ops.trimtab.keep_topk(x, keep)
    check_topk(x, keep)
    # An operator must not return its input.
    return x.clone() if keep == x.shape[-1] else reference.keep_topk(x, keep)


def _keep_above(x: Tensor, threshold: float, cap: int | None) -> Tensor:
    if _loads_cpu_kernels(x):
        return torch.ops.trimtab.keep_above(x, threshold, cap)
    check_above(x, threshold, cap)
    return reference.keep_above(x, threshold, cap)


def _sparse_linear(x: Tensor, weight: Tensor, bias: Tensor | None, threshold: float) -> Tensor:
    if _loads_cpu_kernels(x):
        return torch.ops.trimtab.sparse_linear(x, weight, bias, threshold)
    check_linear(x, weight, bias, threshold)
    return reference.sparse_linear(x, weight, bias, threshold)


def _int8_linear(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    if _loads_cpu_kernels(x):
        return torch.ops.trimtab.int8_linear(x, weight, scale)
    check_int8(x, weight, scale)
    return reference.int8_linear(x, weight, scale)


def _loads_cpu_kernels(x: Tensor) -> bool:
    return x.device.type == "cpu" and cpu.load() is None


def _gpu_keep_topk(x: Tensor, keep: int) -> Tensor:
    if not _triton_selects(x):
        return _keep_topk(x, keep)
    check_topk(x, keep)
    from trimtab_kernels.sparse_linear import gpu

    with torch.cuda.device(x.device):
        return gpu.select(x, keep)


def _gpu_keep_above(x: Tensor, threshold: float, cap: int | None) -> Tensor:
    if not _triton_selects(x):
        return _keep_above(x, threshold, cap)
    check_above(x, threshold, cap)
    from trimtab_kernels.sparse_linear import gpu

    width = x.shape[-1]
    with torch.cuda.device(x.device):
        return gpu.select(x, width if cap is None else min(cap, width), threshold)


def _gpu_sparse_linear(x: Tensor, weight: Tensor, bias: Tensor | None, threshold: float) -> Tensor:
    check_linear(x, weight, bias, threshold)
    if not _triton_multiplies(x, TRITON_TOKENS):
        return reference.sparse_linear(x, weight, bias, threshold)
    from trimtab_kernels.sparse_linear import gpu

    with torch.cuda.device(x.device):
        return gpu.gather_gemv(x, weight, bias, threshold)


def _gpu_int8_linear(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    check_int8(x, weight, scale)
    from trimtab_kernels.sparse_linear import gpu

    if not _triton_multiplies(x, gpu.MAX_TOKENS):
        return reference.int8_linear(x, weight, scale)
    with torch.cuda.device(x.device):
        return gpu.int8_linear(x, weight, scale)


def _triton_multiplies(x: Tensor, most: int) -> bool:
    return x.dtype in TRITON_DTYPES and x.dim() > 0 and 0 < x.shape[:-1].numel() <= most


def _triton_selects(x: Tensor) -> bool:
    from trimtab_kernels.sparse_linear.gpu import MAX_WIDTH

    return x.dtype in TRITON_DTYPES and x.dim() > 0 and x.shape[-1] <= MAX_WIDTH


_GPU = {
    "keep_topk": _gpu_keep_topk,
    "keep_above": _gpu_keep_above,
    "sparse_linear": _gpu_sparse_linear,
    "int8_linear": _gpu_int8_linear,
}
_DEFAULT = {
    "keep_topk": _keep_topk,
    "keep_above": _keep_above,
    "sparse_linear": _sparse_linear,
    "int8_linear": _int8_linear,
}
