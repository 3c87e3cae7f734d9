"""Triton kernels compiled for GPUs, where there is none."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest
import torch

CAPABILITIES = (80, 90)
KINDS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """Have Triton compile anew."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def assert_compiles(
    kernel: Any,
    types: Mapping[str, str],
    constants: Mapping[str, object],
    options: Mapping[str, object],
    capability: int,
) -> None:
    """Compile a kernel to a binary without atomics, but on integers, whose order is no matter."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = {**types, **dict.fromkeys(constants, "constexpr")}
    assert set(signature) == set(kernel.arg_names)
    source = ASTSource(fn=kernel, signature=signature, constexprs=dict(constants))
    built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=dict(options))
    assert built.asm["cubin"].startswith(b"\x7fELF")
    assert f".target sm_{capability}" in built.asm["ptx"]
    atomics = re.findall(r"^\s*(?:@\S+\s+)?((?:atom|red)\.\S+)", built.asm["ptx"], re.MULTILINE)
    assert all(one.endswith((".u64", ".s64")) for one in atomics), atomics
    assert built.metadata.shared <= 96 * 1024  # what every GPU since sm_80 has
