"""Selection and products in Triton: on its interpreter, compiled for GPUs, and on a GPU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from tests.conftest import ROOT
from tests.kernels import triton_cases
from tests.kernels.cases import (
    assert_close_to_float64,
    assert_close_to_float64_int8,
    draw,
    draw_int8,
)
from tests.kernels.compiling import CAPABILITIES, KINDS, assert_compiles, own_cache  # noqa: F401
from trimtab_kernels.sparse_linear import (
    int8_linear,
    keep_above,
    keep_topk,
    kernel_name,
    sparse_linear,
)

pytest.importorskip("triton")


def test_the_kernels_are_right_on_the_interpreter():
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.kernels.triton_cases"],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def sources(kind):
    """Return each kernel with the types, constants and options of a launch."""
    from trimtab_kernels.sparse_linear import gpu, triton_kernels

    pointer, floats = f"*{kind}", "*fp32"
    sizes = dict.fromkeys(("width", "columns", "stride"), "i32")
    blocks = {"BLOCK_ROWS": gpu.BLOCK_ROWS, "BLOCK_COLUMNS": gpu.BLOCK_COLUMNS}
    arrays = {"x_ptr": pointer, "partial_ptr": floats}
    for weight in (pointer, "*i8"):
        read = arrays | {"weight_ptr": weight} | sizes
        for rows in gpu.ROWS[::3]:
            constants = blocks | {"ROWS": rows}
            gathered = read | {"threshold": "fp32"}
            yield triton_kernels.gather_kernel, gathered, constants, gpu.GATHER_OPTIONS
    constants |= {"BLOCK_TOKENS": gpu.MAX_TOKENS}
    yield triton_kernels.dot_kernel, read | {"tokens": "i32"}, constants, gpu.OPTIONS

    of_plan = {"positions_ptr": "*i64", "counts_ptr": "*i64"}
    none = dict.fromkeys(of_plan)
    numbers = {"threshold": "fp32", "dense_prefix": "i32"}
    added = {"partial_ptr": floats, "out_ptr": pointer, "columns": "i32", "parts": "i32"} | numbers
    blocks = {"BLOCK_PARTS": gpu.MAX_BLOCK_PARTS, "BLOCK_COLUMNS": gpu.SUM_COLUMNS}
    biased = added | {"bias_ptr": pointer}, blocks | {"scale_ptr": None} | none
    scaled = added | {"scale_ptr": floats} | of_plan, blocks | {"bias_ptr": None}
    for types, constants in (biased, scaled):
        yield triton_kernels.sum_kernel, types, constants, gpu.OPTIONS

    numbers |= dict.fromkeys(("keep", "width"), "i32")
    constants = dict(zip(("NAN_RANK", "BITS"), gpu.key_of(KINDS[kind]), strict=True))
    constants |= {"BLOCK": 1024}
    arrays = {"x_ptr": pointer, "out_ptr": pointer}
    yield triton_kernels.select_kernel, arrays | of_plan | numbers, constants, gpu.OPTIONS
    yield triton_kernels.select_kernel, arrays | numbers, constants | none, gpu.OPTIONS


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("kind", KINDS)
def test_binaries_for_gpus_are_built_without_atomics(capability, kind):
    for kernel, types, constants, options in sources(kind):
        assert_compiles(kernel, types, constants, options, capability)


@pytest.fixture
def float32_sums(monkeypatch):
    """Have the library's products sum in float32, as the bounds assume."""
    for kind in ("fp16", "bf16"):
        name = f"allow_{kind}_reduced_precision_reduction"
        monkeypatch.setattr(torch.backends.cuda.matmul, name, False)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", triton_cases.DTYPES)
def test_selection_on_a_gpu(dtype):
    triton_cases.check_selection(dtype, "cuda", (1, 3, 576, 4096, 11008, 16384))
    x = torch.randn(2, 20000, device="cuda").to(dtype)  # wider than the kernel's registers
    x[x == 0] = 1
    assert ((keep_topk(x, 9000) != 0).sum(-1) == 9000).all()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", triton_cases.DTYPES)
def test_products_on_a_gpu(dtype):
    triton_cases.check_product(dtype, "cuda")
    triton_cases.check_int8(dtype, "cuda")
    triton_cases.check_product(dtype, "cuda", triton_cases.LARGE)
    triton_cases.check_int8(dtype, "cuda", triton_cases.LARGE)
    triton_cases.check_dropping(dtype, "cuda")


@pytest.mark.gpu
def test_products_of_any_size_on_a_gpu():
    triton_cases.check_parts("cuda")
    triton_cases.check_far_rows("cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [*triton_cases.DTYPES, torch.float32])
@pytest.mark.parametrize("tokens", [1, 9])
def test_the_operators_on_a_gpu(dtype, tokens, float32_sums):
    assert ("Triton" in kernel_name("cuda", dtype)) == (dtype != torch.float32)
    x, weight, bias = (tensor.cuda() for tensor in draw(577, 131, dtype, tokens))
    kept = keep_topk(x, 300)
    assert ((kept != 0).sum(-1) == 300).all()
    found = sparse_linear(kept, weight, bias)
    assert_close_to_float64(found.cpu(), kept.cpu(), weight.cpu(), bias.cpu())
    found = sparse_linear(x, weight, bias, 0.6)
    assert_close_to_float64(found.cpu(), x.cpu(), weight.cpu(), bias.cpu(), 0.6)
    above = keep_above(x, 0.6, 100)
    assert ((above != 0).sum(-1) <= 100).all()
    torch.library.opcheck(torch.ops.trimtab.sparse_linear.default, (x, weight, bias, 0.6))
    torch.library.opcheck(torch.ops.trimtab.keep_topk.default, (x, 300))
    compiled = torch.compile(
        lambda x: sparse_linear(keep_topk(x, 300), weight, bias),
        fullgraph=True,
        backend="aot_eager",
    )
    assert_close_to_float64(compiled(x).cpu(), kept.cpu(), weight.cpu(), bias.cpu())


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [*triton_cases.DTYPES, torch.float32])
@pytest.mark.parametrize("tokens", [1, 9])
def test_the_int8_operator_on_a_gpu(dtype, tokens, float32_sums):
    arguments = draw_int8(577, 131, dtype, tokens)
    on_device = tuple(tensor.cuda() for tensor in arguments)
    found = int8_linear(*on_device)
    assert_close_to_float64_int8(found.cpu(), *arguments)
    assert all(torch.equal(int8_linear(*on_device), found) for _ in range(3))
    torch.library.opcheck(torch.ops.trimtab.int8_linear.default, on_device)


@pytest.mark.gpu
def test_an_argument_on_another_device_is_refused():
    x, weight, _ = draw(64, 33, torch.bfloat16)
    with pytest.raises(ValueError, match="weight is torch.bfloat16 on cpu; expected"):
        sparse_linear(x.cuda(), weight)
