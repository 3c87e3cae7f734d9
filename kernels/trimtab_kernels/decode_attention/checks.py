"""Checks of the operators' arguments where no C++ runs; cpu.cpp has the same messages."""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: Tensor,
    window: int | None,
    softcap: float | None,
    out: Tensor | None = None,
) -> None:
    if query.dtype not in DTYPES:
        raise ValueError(f"query is {query.dtype}; expected float32, bfloat16, float16 or float64")
    _check_cache(keys, values, lengths)
    _check_kind("keys", keys, "query", query)
    slots, _, kv_heads, width = keys.shape
    fits = query.dim() == 3 and (query.shape[0], query.shape[2]) == (slots, width)
    if not fits or not kv_heads or query.shape[1] % kv_heads:
        raise ValueError(
            f"query has shape {list(query.shape)}; expected "
            f"[{slots}, a multiple of {kv_heads}, {width}] for keys of shape {list(keys.shape)}"
        )
    if window is not None and window < 1:
        raise ValueError(f"window={window}; expected at least 1 or None")
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap={softcap}; expected a number above 0 or None")
    if out is not None:
        if out.shape != query.shape or not out.is_contiguous():
            raise ValueError(
                f"out has shape {list(out.shape)} and strides {list(out.stride())}; "
                f"expected contiguous {list(query.shape)} as query has"
            )
        _check_kind("out", out, "query", query)


def check_append(keys: Tensor, values: Tensor, key: Tensor, value: Tensor, lengths: Tensor) -> None:
    _check_cache(keys, values, lengths)
    shape = [keys.shape[0], *keys.shape[2:]]
    for name, token in (("key", key), ("value", value)):
        if list(token.shape) != shape:
            raise ValueError(
                f"{name} has shape {list(token.shape)}; expected {shape} "
                f"for keys of shape {list(keys.shape)}"
            )
        _check_kind(name, token, "keys", keys)


def _check_cache(keys: Tensor, values: Tensor, lengths: Tensor) -> None:
    if keys.dim() != 4:
        raise ValueError(
            f"keys has shape {list(keys.shape)}; expected [slots, max_len, kv_heads, head_dim]"
        )
    if values.shape != keys.shape:
        raise ValueError(
            f"values has shape {list(values.shape)}; expected {list(keys.shape)} as keys has"
        )
    _check_kind("values", values, "keys", keys)
    for name, cache in (("keys", keys), ("values", values)):
        if cache.shape[3] > 1 and cache.stride(3) != 1:
            raise ValueError(
                f"{name} has strides {list(cache.stride())}; expected a last stride of 1"
            )
    shape = [keys.shape[0]]
    if (
        lengths.dtype != torch.int32
        or lengths.device != keys.device
        or list(lengths.shape) != shape
    ):
        raise ValueError(
            f"lengths is {lengths.dtype} of shape {list(lengths.shape)} on {lengths.device}; "
            f"expected torch.int32 of shape {shape} on {keys.device}"
        )


def _check_kind(name: str, tensor: Tensor, other: str, like: Tensor) -> None:
    if tensor.dtype != like.dtype or tensor.device != like.device:
        raise ValueError(
            f"{name} is {tensor.dtype} on {tensor.device}; "
            f"expected {like.dtype} on {like.device} as {other} is"
        )
