"""The C++ kernels of this folder: their sources and their names."""

from __future__ import annotations

from pathlib import Path

import torch

from trimtab_kernels import build

DTYPES = (torch.float32, torch.bfloat16)
LIBRARY = build.CpuLibrary(
    name="sparse_linear",
    sources=(
        *(Path(__file__).parent / name for name in ("cpu.cpp", "cpu_gather.h", "cpu_select.h")),
        *build.HEADERS,
    ),
    seconds=15,
)


def load() -> str | None:
    """Register the C++ kernels with PyTorch; see `build.load`."""
    return build.load(LIBRARY)


def gather_tokens(dtype: torch.dtype) -> int:
    """Return the most tokens whose product leaves weight rows unread; 0 without the kernels."""
    if load() is not None:
        return 0
    return int(torch.ops.trimtab.sparse_linear_gather_tokens(dtype))


def describe(dtype: torch.dtype) -> str:
    """Return the name of the kernel for one token of this dtype, or why there is none."""
    return build.describe(LIBRARY, dtype, "gather-GEMV", "dense masked product in PyTorch")
