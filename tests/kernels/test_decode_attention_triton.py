"""Decode attention in Triton: on its interpreter, compiled for GPUs, and on a GPU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from tests.conftest import ROOT
from tests.kernels import triton_attention_cases
from tests.kernels.attention_cases import assert_close_to_float64, draw
from tests.kernels.compiling import CAPABILITIES, KINDS, assert_compiles, own_cache  # noqa: F401
from trimtab_kernels import reference
from trimtab_kernels.decode_attention import append_kv, decode_attention, kernel_name

pytest.importorskip("triton")

STRIDES = [f"{cache}_{axis}" for cache in ("key", "value") for axis in ("slot", "token", "head")]


def test_the_kernels_are_right_on_the_interpreter():
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            "-W",
            "ignore::DeprecationWarning",
            "-m",
            "tests.kernels.triton_attention_cases",
        ],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONFAULTHANDLER": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def sources(kind):
    """Return each kernel with the types, constants and options of a launch."""
    from trimtab_kernels.decode_attention import gpu, triton_kernels

    heads, tokens, columns = gpu.block_sizes(4, 128, KINDS[kind])
    pointers = dict.fromkeys(["query_ptr", "keys_ptr", "values_ptr"], f"*{kind}")
    pointers |= {"lengths_ptr": "*i32"}
    buffers = dict.fromkeys(["sums_ptr", "largest_ptr", "total_ptr"], "*fp32")
    numbers = dict.fromkeys(["window", "width", "lengths_stride"], "i32")
    parts = {"MAX_PARTS": gpu.MAX_PARTS, "PART": gpu.PART}
    for slots, no_slots in (({"slots_ptr": "*i64"}, {}), ({}, {"slots_ptr": None})):
        yield (
            triton_kernels.attend_kernel,
            pointers | slots | buffers | {"scale": "fp32", "softcap": "fp32", "group": "i32"}
            | numbers | dict.fromkeys(STRIDES, "i64"),
            {"HAS_SOFTCAP": kind == "fp16", "BLOCK_HEADS": heads, "BLOCK_TOKENS": tokens,
             "BLOCK_WIDTH": columns} | parts | no_slots,
            gpu.ATTEND_OPTIONS,
        )  # fmt: skip
    combined = buffers | {"lengths_ptr": "*i32", "out_ptr": f"*{kind}", "parts": "i32"} | numbers
    combined |= {"threshold": "fp32", "dense_prefix": "i32"}
    of_plan = {"positions_ptr": "*i64", "counts_ptr": "*i64"}
    constants = {"BLOCK_WIDTH": columns} | parts
    yield triton_kernels.combine_kernel, combined | of_plan, constants, gpu.OPTIONS
    without = constants | dict.fromkeys(of_plan)
    yield triton_kernels.combine_kernel, combined, without, gpu.OPTIONS
    caches = ["keys_ptr", "values_ptr", "key_ptr", "value_ptr"]
    yield (
        triton_kernels.append_kernel,
        dict.fromkeys(caches, f"*{kind}") | {"lengths_ptr": "*i32", "width": "i32"}
        | {"lengths_stride": "i32"} | dict.fromkeys(STRIDES, "i64"),
        {"BLOCK_WIDTH": 128},
        gpu.OPTIONS,
    )  # fmt: skip


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("kind", KINDS)
def test_binaries_for_gpus_are_built_without_atomics(capability, kind):
    for kernel, types, constants, options in sources(kind):
        assert_compiles(kernel, types, constants, options, capability)


def test_blocks_fill_shared_memory_and_part_evenly():
    from trimtab_kernels.decode_attention import gpu

    for dtype in KINDS.values():
        for width in (1, 16, 24, 64, 80, 128, 256, 512):
            for group in (1, 3, 16, 17):
                heads, tokens, columns = gpu.block_sizes(group, width, dtype)
                assert heads >= max(group, gpu.MIN_DOT)
                assert columns >= max(width, gpu.MIN_DOT)
                assert gpu.PART % tokens == 0
                assert tokens == 16 or tokens * columns * dtype.itemsize <= gpu.BLOCK_BYTES


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", triton_attention_cases.DTYPES)
def test_attention_on_a_gpu(dtype):
    triton_attention_cases.check_attention(dtype, "cuda")
    triton_attention_cases.check_many_parts(dtype, "cuda")
    triton_attention_cases.check_append(dtype, "cuda")
    triton_attention_cases.check_layers_side_by_side(dtype, "cuda")
    if dtype != torch.float16:  # whose largest numbers' products are finite in float32
        triton_attention_cases.check_minus_infinity(dtype, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [*triton_attention_cases.DTYPES, torch.float64])
def test_the_operators_on_a_gpu(dtype):
    assert ("Triton" in kernel_name("cuda", dtype)) == (dtype != torch.float64)
    case = draw([70, 0, 300], dtype, 4, 2, 64, gaps=(0, 0, 64), softcap=3.0).to("cuda")
    found = decode_attention(*case.arguments)
    assert_close_to_float64(found, case, rounded_weights=dtype.itemsize == 2)
    out = torch.empty_like(found)
    assert decode_attention(*case.arguments, out=out) is out
    assert torch.equal(out, found)
    check = torch.library.opcheck
    case.keys.nan_to_num_()
    case.values.nan_to_num_()
    check(torch.ops.trimtab.decode_attention.default, case.arguments)
    key, value = torch.randn(2, 3, 2, 64, device="cuda").to(dtype)
    check(torch.ops.trimtab.append_kv.default, (case.keys, case.values, key, value, case.lengths))
    with pytest.raises(ValueError, match="lengths is torch.int32 .* on cpu; expected"):
        decode_attention(*case.arguments[:3], case.lengths.cpu(), 1.0)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", triton_attention_cases.DTYPES)
def test_a_captured_graph_follows_lengths_that_grow(dtype):
    lengths = [254, 0, 600]
    case = draw(lengths, dtype, 3, 2, 64, max_len=700).to("cuda")
    key, value = torch.randn(2, 3, 2, 64, device="cuda").to(dtype)
    out = torch.empty_like(case.query)
    present = torch.tensor([1, 0, 1], dtype=torch.int32, device="cuda")

    def step() -> None:
        case.lengths.add_(present)
        append_kv(case.keys, case.values, key, value, case.lengths)
        decode_attention(*case.arguments, out=out)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for _ in range(5):
        key.normal_()
        value.normal_()
        case.query.normal_()
        graph.replay()
        torch.cuda.synchronize()
        assert_close_to_float64(out, case, rounded_weights=dtype != torch.float32)
        assert torch.equal(out, decode_attention(*case.arguments))
        assert torch.equal(case.keys[0, case.lengths[0] - 1], key[0])
    assert case.lengths.tolist() == [260, 0, 606]
    assert torch.equal(reference.decode_attention(*case.arguments)[1], torch.zeros_like(out[1]))
