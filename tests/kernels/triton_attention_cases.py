"""Checks of Triton's decode attention on any device; as a module, on Triton's interpreter."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from itertools import product

import numpy as np
import torch

from tests.kernels.attention_cases import Case, assert_close_to_float64, draw, expected, guard
from tests.kernels.interpreting import prepare_interpreter

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Query heads per KV head, KV heads, head_dim, gaps, window and softcap.
SETTINGS = (
    (1, 1, 24, (0, 0, 0), None, None),
    (3, 2, 64, (8, 0, 64), 100, None),
    (4, 1, 80, (0, 3, 0), None, 2.0),
    (17, 1, 96, (0, 0, 0), 270, 2.0),
)


def run(case: Case) -> torch.Tensor:
    from trimtab_kernels.decode_attention.gpu import decode_attention

    out = torch.full_like(case.query, torch.nan)
    decode_attention(*case.arguments, out)
    return out


def check_attention(dtype: torch.dtype, device: str) -> None:
    for group, kv_heads, width, gaps, window, softcap in SETTINGS:
        lengths = [300, 0, 1, 256]
        case = draw(lengths, dtype, group, kv_heads, width, 310, window, softcap, gaps).to(device)
        found = run(case)
        assert_close_to_float64(found, case, rounded_weights=dtype != torch.float32)
        assert torch.equal(run(case.slot(0))[0], found[0])


def check_many_parts(dtype: torch.dtype, device: str) -> None:
    from trimtab_kernels.decode_attention.gpu import MAX_PARTS, PART

    for length in (MAX_PARTS * PART, MAX_PARTS * PART + 1):
        case = draw([length, 70], dtype, group=1, kv_heads=1, width=16).to(device)
        found = run(case)
        assert_close_to_float64(found, case, rounded_weights=dtype != torch.float32)
        assert torch.equal(run(case), found)
        assert torch.equal(run(case.slot(1))[0], found[1])


def check_minus_infinity(dtype: torch.dtype, device: str) -> None:
    case = draw([130], dtype, group=1, kv_heads=1).to(device)
    case.query.fill_(4.0)
    case.keys[0, :128] = -torch.finfo(dtype).max
    rest = Case(
        case.query, case.keys[:, 128:], case.values[:, 128:], case.lengths - 128, case.scale
    )
    with np.errstate(over="ignore"):
        found = run(case).cpu().double()
    torch.testing.assert_close(found, expected(rest).cpu(), rtol=0.01, atol=0.01)


def check_append(dtype: torch.dtype, device: str) -> None:
    from trimtab_kernels.decode_attention.gpu import append_kv

    case = draw([5, 0, 9, 1], dtype, gaps=(1, 3, 7)).to(device)
    key, value = (torch.randn(4, 24, 2).to(device, dtype).transpose(1, 2) for _ in range(2))
    wanted = [cache.clone() for cache in (case.keys, case.values)]
    for copy, token in zip(wanted, (key, value), strict=True):
        for slot, length in ((0, 5), (2, 9), (3, 1)):
            copy[slot, length - 1] = token[slot]
    append_kv(case.keys, case.values, key, value, case.lengths)
    for cache, copy in zip((case.keys, case.values), wanted, strict=True):
        assert torch.equal(cache.nan_to_num(7.0), copy.nan_to_num(7.0))


def check_layers_side_by_side(dtype: torch.dtype, device: str) -> None:
    """Run every layer of a cache in which the tokens of all layers alternate, as in `mega`."""
    from trimtab_kernels.decode_attention.gpu import append_kv

    lengths, layers, kv_heads, width = [200, 0, 70], 3, 2, 64
    cases = [draw(lengths, dtype, 3, kv_heads, width, 210, seed=layer) for layer in range(layers)]
    caches = [torch.stack([getattr(one, name) for one in cases], 2) for name in ("keys", "values")]
    caches = [cache.to(device) for cache in caches]
    for layer, alone in enumerate(cases):
        alone = alone.to(device)
        keys, values = (cache[:, :, layer] for cache in caches)
        assert keys.stride(1) == layers * kv_heads * width
        key, value = torch.randn(2, len(lengths), kv_heads, width).to(device, dtype)
        append_kv(alone.keys, alone.values, key, value, alone.lengths)
        append_kv(keys, values, key, value, alone.lengths)
        together = replace(alone, keys=keys, values=values)
        assert torch.equal(run(together), run(alone))
        cases[layer] = alone
    for name, cache in zip(("keys", "values"), caches, strict=True):
        wanted = torch.stack([getattr(one, name) for one in cases], 2)
        assert torch.equal(cache.nan_to_num(7.0), wanted.nan_to_num(7.0))


def check_guarded() -> None:
    from trimtab_kernels.decode_attention.gpu import append_kv

    for width, window in product((64, 80), (None, 64)):
        case = draw([192, 0, 64], torch.float32, width=width, max_len=256, window=window)
        guarded = guard(case)
        assert_close_to_float64(run(guarded), case)
        key, value = torch.randn(2, 3, 2, width)
        append_kv(guarded.keys, guarded.values, key, value, guarded.lengths)
        assert torch.equal(guarded.values[2, 63], value[2])


if __name__ == "__main__":
    if not os.environ.get("TRITON_INTERPRET"):
        sys.exit("set TRITON_INTERPRET=1")
    prepare_interpreter()
    for dtype in DTYPES:
        check_attention(dtype, "cpu")
        check_append(dtype, "cpu")
        check_layers_side_by_side(dtype, "cpu")
    check_many_parts(torch.float32, "cpu")
    check_minus_infinity(torch.float32, "cpu")
    check_guarded()
