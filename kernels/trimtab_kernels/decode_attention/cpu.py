"""The C++ kernels of this folder: their sources and their names."""

from __future__ import annotations

from pathlib import Path

import torch

from trimtab_kernels import build

DTYPES = (torch.float32, torch.bfloat16)
REFERENCE = "one slot at a time in PyTorch"
LIBRARY = build.CpuLibrary(
    name="decode_attention",
    sources=(
        *(
            Path(__file__).parent / name
            for name in ("cpu.cpp", "cpu_attend.h", "cpu_products.h", "cpu_softmax.h")
        ),
        *build.HEADERS,
    ),
    seconds=10,
)


def load() -> str | None:
    """Register the C++ kernels with PyTorch; see `build.load`."""
    return build.load(LIBRARY)


def describe(dtype: torch.dtype) -> str:
    """Return the name of the kernel for this dtype, or why there is none."""
    return build.describe(LIBRARY, dtype, "decode attention", REFERENCE)
