"""The kernels of decode steps in Triton, compiled for GPUs."""

from __future__ import annotations

import pytest

from tests.kernels.compiling import CAPABILITIES, KINDS, assert_compiles, own_cache  # noqa: F401
from trimtab_kernels.decode_step import Activation

pytest.importorskip("triton")

NORMS = ("query_weight_ptr", "query_bias_ptr", "key_weight_ptr", "key_bias_ptr")
STRIDES = [f"{cache}_{axis}" for cache in ("key", "value") for axis in ("slot", "token", "head")]


def sources(kind):
    """Return each kernel with the types and constants of launches: with all there is, and least."""
    from trimtab_kernels.decode_step import triton_kernels
    from trimtab_kernels.decode_step.gpu_step import BLOCK_OF_PARTS
    from trimtab_kernels.sparse_linear.gpu import MAX_BLOCK_PARTS, key_of

    pointer = f"*{kind}"

    def pointers(*names):
        return dict.fromkeys(names, pointer)

    embed = pointers("weight_ptr", "out_ptr") | {"tokens_ptr": "*i64", "positions_ptr": "*i64"}
    embed |= {"scale": "fp32"}
    embed |= dict.fromkeys(("offset", "width", "weight_stride", "learned_stride"), "i32")
    learned, block = pointers("learned_ptr"), {"BLOCK": 1024}
    yield triton_kernels.embed_kernel, embed | learned, {"HAS_SCALE": True} | block
    yield triton_kernels.embed_kernel, embed, {"HAS_SCALE": False, "learned_ptr": None} | block

    post = ("added_ptr", "post_weight_ptr", "post_bias_ptr")
    own = ("weight_ptr", "bias_ptr")
    selection = {"positions_ptr": "*i64", "counts_ptr": "*i64"}
    rule = {"threshold": "fp32", "dense_prefix": "i32"}
    norm = pointers("stream_ptr", "out_ptr") | {"width": "i32", "keep": "i32"} | rule
    norm |= dict.fromkeys(("post_epsilon", "post_offset", "epsilon", "offset"), "fp32")
    centers = {"CENTERS": True, "POST_CENTERS": False} | block
    centers |= dict(zip(("NAN_RANK", "BITS"), key_of(KINDS[kind]), strict=True))
    none = centers | dict.fromkeys(selection)
    yield triton_kernels.norm_kernel, norm | pointers(*post, *own) | selection, centers
    yield triton_kernels.norm_kernel, norm | pointers(*own), none | dict.fromkeys(post)
    yield (
        triton_kernels.norm_kernel,
        norm | pointers("added_ptr"),
        none | dict.fromkeys((*post[1:], *own)),
    )

    partial = {"made_ptr": "*fp32", "bias_ptr": pointer, "parts": "i32"}
    whole = {"made_ptr": pointer, "parts": "i32"}
    several, one = {"BLOCK_PARTS": MAX_BLOCK_PARTS}, {"BLOCK_PARTS": 1, "bias_ptr": None}
    place = pointers("query_ptr", "keys_ptr", "values_ptr")
    place |= {"slots_ptr": "*i64", "positions_ptr": "*i64", "epsilon": "fp32", "offset": "fp32"}
    place |= dict.fromkeys(("heads", "kv_heads", "width", "rotated"), "i32")
    place |= dict.fromkeys(STRIDES, "i64")
    tables, head = ("cos_ptr", "sin_ptr"), {"BLOCK": 128}
    centering = head | {"CENTERS": True}
    most = place | pointers(*NORMS, *tables) | partial
    yield triton_kernels.place_kernel, most, centering | several
    least = head | {"CENTERS": False} | dict.fromkeys((*NORMS, *tables)) | one
    yield triton_kernels.place_kernel, place | whole, least

    for activation in Activation:
        constants = {"KIND": activation.value, "GATED": activation is Activation.silu} | block
        types = {"out_ptr": pointer, "width": "i32"} | rule
        without = constants | one | dict.fromkeys(selection)
        yield triton_kernels.activate_kernel, types | whole, without
    constants |= several | {"BLOCK": BLOCK_OF_PARTS}
    yield triton_kernels.activate_kernel, types | partial | selection, constants


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("kind", KINDS)
def test_binaries_for_gpus_are_built_without_atomics(capability, kind):
    from trimtab_kernels.decode_step.gpu_inputs import OPTIONS

    for kernel, types, constants in sources(kind):
        assert_compiles(kernel, types, constants, OPTIONS, capability)
