"""The operators: schemas, shape functions and public functions."""

from __future__ import annotations

import torch
from torch import Tensor

from trimtab_kernels.decode_attention import cpu, dispatch
from trimtab_kernels.decode_attention.checks import check_append, check_attention
from trimtab_kernels.gradients import refuse_gradients, register_refusals

_LIBRARY = torch.library.Library("trimtab", "FRAGMENT")
_ATTENTION = (
    "Tensor query, Tensor keys, Tensor values, Tensor lengths, float scale, int? window, "
    "float? softcap"
)
for _schema in (
    f"decode_attention({_ATTENTION}) -> Tensor",
    f"decode_attention.out({_ATTENTION}, *, Tensor(a!) out) -> ()",
    "append_kv(Tensor(a!) keys, Tensor(b!) values, Tensor key, Tensor value, Tensor lengths) -> ()",
):
    _LIBRARY.define(_schema, tags=torch.Tag.pt2_compliant_tag)

_decode_attention = torch.ops.trimtab.decode_attention.default
_decode_attention_out = torch.ops.trimtab.decode_attention.out
_append_kv = torch.ops.trimtab.append_kv.default


def decode_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: Tensor,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Attend with one query per slot to the slot's tokens, including the newest one.

    Of `keys` and `values`, only the tokens attended to are read: addresses before a window or
    beyond a slot's length may be unmapped. The C++ and Triton kernels read each token once for all
    query heads of a KV head. Scores, softmax and sums are in float32, or in float64 for float64;
    Triton rounds the weights of the softmax to the dtype of float16 or bfloat16 values. For both
    kernels, the result of a slot is the same bit for bit whatever the other slots hold, and in C++
    for any number of threads. The softmax is computed block by block (arXiv 1805.02867), and the
    parts of a long slot separately, as in flash-decoding.

    Parameters
    ----------
    query : Tensor
        float32, bfloat16, float16 or float64, of shape [slots, heads, head_dim].
    keys, values : Tensor
        Of the dtype of `query` and of shape [slots, max_len, kv_heads, head_dim], where `kv_heads`
        divides `heads`. The last stride must be 1; the others are free.
    lengths : Tensor
        Tokens of every slot: int32 of shape [slots] on the same device, between 0 and `max_len`.
        The Triton kernels read them on the device, so a captured CUDA graph follows them as they
        grow, but they are not checked there.
    scale : float
        Factor on the products of query and key.
    window : int, optional
        At least 1. Attend only to the last `window` tokens of a slot.
    softcap : float, optional
        Above 0. A score s becomes ``softcap * tanh(s / softcap)`` (Gemma 2, arXiv 2408.00118).
    out : Tensor, optional
        Receives the result: contiguous, of the shape and dtype of `query`.

    Returns
    -------
    Tensor
        `out`, or a new tensor of the shape and dtype of `query`; zeros for a slot of length 0.

    Raises
    ------
    ValueError
        If a shape, stride, dtype or device does not match, or if `window`, `softcap` or, except on
        a GPU, a length is out of range.
    NotImplementedError
        If gradients are to be taken: there is no derivative.
    """
    refuse_gradients("decode_attention", query, keys, values)
    if out is None:
        return _decode_attention(query, keys, values, lengths, scale, window, softcap)
    _decode_attention_out(query, keys, values, lengths, scale, window, softcap, out=out)
    return out


def append_kv(keys: Tensor, values: Tensor, key: Tensor, value: Tensor, lengths: Tensor) -> None:
    """Write the key and value of every slot's last token, in place.

    With Inductor, this is in place under torch.compile too. Other backends may copy whole caches,
    including unmapped memory, as PyTorch does there for any operator that changes its arguments.

    Parameters
    ----------
    keys, values : Tensor
        As in `decode_attention`.
    key, value : Tensor
        Of the dtype of `keys` and of shape [slots, kv_heads, head_dim].
    lengths : Tensor
        As in `decode_attention`, including the new token, which is written at ``lengths - 1``. A
        slot of length 0 is not touched.

    Raises
    ------
    ValueError
        If a shape, stride, dtype or device does not match, or if, except on a GPU, a length is out
        of range.
    NotImplementedError
        If gradients are to be taken: there is no derivative.
    """
    refuse_gradients("append_kv", keys, values, key, value)
    _append_kv(keys, values, key, value, lengths)


def kernel_name(device_type: str, dtype: torch.dtype) -> str:
    """Return the name of what `decode_attention` runs on this type of device.

    On a CPU, this builds the C++ kernels if they have not been built yet.
    """
    if device_type == "cpu" and dtype in cpu.DTYPES:
        return cpu.describe(dtype)
    kind = str(dtype).removeprefix("torch.")
    if device_type == "cuda" and dtype in dispatch.TRITON_DTYPES:
        return f"Triton split-K decode attention, {kind}"
    return f"reference: {cpu.REFERENCE} (no kernel for {kind} on {device_type})"


@torch.library.register_fake("trimtab::decode_attention", lib=_LIBRARY)
def _(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    check_attention(query, keys, values, lengths, window, softcap)
    return torch.empty(query.shape, dtype=query.dtype, device=query.device)


@torch.library.register_fake("trimtab::decode_attention.out", lib=_LIBRARY)
def _(
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
    check_attention(query, keys, values, lengths, window, softcap, out)


@torch.library.register_fake("trimtab::append_kv", lib=_LIBRARY)
def _(keys: Tensor, values: Tensor, key: Tensor, value: Tensor, lengths: Tensor) -> None:
    check_append(keys, values, key, value, lengths)


dispatch.register(_LIBRARY)
register_refusals(_LIBRARY, "decode_attention", "decode_attention.out", "append_kv")
