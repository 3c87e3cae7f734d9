"""Which implementation of an operator runs on which device."""

from __future__ import annotations

import torch
from torch import Tensor

from trimtab_kernels import reference
from trimtab_kernels.decode_attention import cpu
from trimtab_kernels.decode_attention.checks import check_append, check_attention

TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def register(library: torch.library.Library) -> None:
    """Register the implementations for GPUs, and the default for all other devices.

    As in `trimtab_kernels.sparse_linear.dispatch`, on a CPU the default runs until the first call
    has loaded the C++ kernels.
    """
    library.impl("decode_attention", _decode_attention, "CompositeExplicitAutograd")
    library.impl("decode_attention.out", _decode_attention_out, "CompositeExplicitAutograd")
    library.impl("append_kv", _append_kv, "CompositeExplicitAutograd")
    library.impl("decode_attention.out", _gpu_decode_attention_out, "CUDA")
    library.impl("append_kv", _gpu_append_kv, "CUDA")


def _decode_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    torch.ops.trimtab.decode_attention.out(
        query, keys, values, lengths, scale, window, softcap, out=out
    )
    return out


def _decode_attention_out(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
    *,
    out: Tensor,
) -> None:
    if query.device.type == "cpu" and cpu.load() is None:
        torch.ops.trimtab.decode_attention.out(
            query, keys, values, lengths, scale, window, softcap, out=out
        )
        return
    check_attention(query, keys, values, lengths, window, softcap, out)
    out.copy_(reference.decode_attention(query, keys, values, lengths, scale, window, softcap))


def _append_kv(keys: Tensor, values: Tensor, key: Tensor, value: Tensor, lengths: Tensor) -> None:
    if keys.device.type == "cpu" and cpu.load() is None:
        torch.ops.trimtab.append_kv(keys, values, key, value, lengths)
        return
    check_append(keys, values, key, value, lengths)
    reference.append_kv(keys, values, key, value, lengths)


def _gpu_decode_attention_out(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
    *,
    out: Tensor,
) -> None:
    if query.dtype not in TRITON_DTYPES:
        _decode_attention_out(query, keys, values, lengths, scale, window, softcap, out=out)
        return
    check_attention(query, keys, values, lengths, window, softcap, out)
    from trimtab_kernels.decode_attention import gpu

    with torch.cuda.device(query.device):
        gpu.decode_attention(query, keys, values, lengths, scale, window, softcap, out)


def _gpu_append_kv(
    keys: Tensor, values: Tensor, key: Tensor, value: Tensor, lengths: Tensor
) -> None:
    check_append(keys, values, key, value, lengths)
    from trimtab_kernels.decode_attention import gpu

    with torch.cuda.device(keys.device):
        gpu.append_kv(keys, values, key, value, lengths)
