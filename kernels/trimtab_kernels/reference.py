"""The definition of every kernel in plain PyTorch; the fast versions are tested against it."""

from __future__ import annotations

import torch
from torch import Tensor


def keep_topk(x: Tensor, keep: int) -> Tensor:
    """Zero all but the `keep` entries of largest magnitude along the last dimension.

    Exactly `keep` positions survive in every row. Among equal magnitudes, the lowest index wins.
    NaN counts as the largest, so that it is never dropped silently.

    Parameters
    ----------
    x : Tensor
        Floating point, of shape [..., d].
    keep : int
        Between 0 and d.

    Returns
    -------
    Tensor
        Of the shape and dtype of `x`; `x` itself if nothing is dropped.

    Raises
    ------
    ValueError
        If `keep` is outside [0, d].
    """
    width = x.shape[-1]
    if not 0 <= keep <= width:
        raise ValueError(f"keep={keep} is outside [0, {width}]")
    if keep == width:
        return x
    kept = x.abs().sort(dim=-1, descending=True, stable=True).indices[..., :keep]
    return torch.zeros_like(x).scatter_(-1, kept, x.gather(-1, kept))


def keep_above(x: Tensor, threshold: float, cap: int | None = None) -> Tensor:
    """Zero the entries whose magnitude is below `threshold` (TEAL, arXiv 2408.14690, eq. 2).

    Magnitudes are compared with the threshold in float32, or in float64 if `x` is. NaN stays.

    Parameters
    ----------
    x : Tensor
        Floating point, of shape [..., d].
    threshold : float
        At least 0; 0 drops nothing.
    cap : int, optional
        If more entries of a row reach the threshold, only the largest `cap` stay, as in
        `keep_topk`.
    """
    wide = x if x.dtype == torch.float64 else x.float()
    passing = x.masked_fill(wide.abs() < threshold, 0)
    return passing if cap is None else keep_topk(passing, min(cap, x.shape[-1]))


def sparse_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, threshold: float = 0.0
) -> Tensor:
    """Return ``keep_above(x, threshold) @ weight + bias``, a dense product on masked input.

    Parameters
    ----------
    x : Tensor
        Floating point, of shape [..., d].
    weight : Tensor
        Input-major, of shape [d, n]: one row per entry of `x`.
    bias : Tensor, optional
        Of shape [n].
    threshold : float
        At least 0.
    """
    masked = keep_above(x, threshold) if threshold > 0 else x
    return torch.nn.functional.linear(masked, weight.t(), bias)


def int8_linear(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """Return ``(x @ weight) * scale`` in the dtype of `x`; the columns of `weight` are scaled.

    Parameters
    ----------
    x : Tensor
        Floating point, of shape [..., d].
    weight : Tensor
        int8 of shape [d, n].
    scale : Tensor
        One factor per column, float32 of shape [n].
    """
    return ((x @ weight.to(x.dtype)) * scale).to(x.dtype)


def decode_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: Tensor,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Attend with one query per slot to the slot's first tokens, read in place.

    Only the tokens attended to are read. Scores, softmax and sums are in float32, or in float64 if
    `query` is.

    Parameters
    ----------
    query : Tensor
        Of shape [slots, heads, head_dim].
    keys, values : Tensor
        Of shape [slots, max_len, kv_heads, head_dim], where `kv_heads` divides `heads`.
    lengths : Tensor
        Tokens of every slot: integers of shape [slots], between 0 and `max_len`.
    scale : float
        Factor on the products of query and key.
    window : int, optional
        Attend only to the last `window` tokens of a slot.
    softcap : float, optional
        If given, a score s becomes ``softcap * tanh(s / softcap)``.

    Returns
    -------
    Tensor
        Of the shape and dtype of `query`; zeros for a slot of length 0.

    Raises
    ------
    ValueError
        If a length is outside [0, max_len].
    """
    slots, heads, width = query.shape
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    out = torch.zeros((slots, heads, width), dtype=query.dtype, device=query.device)
    for slot, length in enumerate(_lengths(keys, lengths)):
        if not length:
            continue
        attended = slice(max(0, length - (window or length)), length)
        key, value = (cache[slot, attended].to(wide) for cache in (keys, values))
        grouped = query[slot].to(wide).reshape(key.shape[1], -1, width)
        scores = torch.einsum("kgd,nkd->kgn", grouped, key) * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        mixed = torch.einsum("kgn,nkd->kgd", scores.softmax(-1), value)
        out[slot] = mixed.reshape(heads, width)
    return out


def append_kv(keys: Tensor, values: Tensor, key: Tensor, value: Tensor, lengths: Tensor) -> None:
    """Write the key and value of every slot's last token, in place.

    Parameters
    ----------
    keys, values : Tensor
        Of shape [slots, max_len, kv_heads, head_dim].
    key, value : Tensor
        Of shape [slots, kv_heads, head_dim].
    lengths : Tensor
        Tokens of every slot, including the new one: integers of shape [slots], between 0 and
        `max_len`. A slot of length 0 is not touched.

    Raises
    ------
    ValueError
        If a length is outside [0, max_len].
    """
    for slot, length in enumerate(_lengths(keys, lengths)):
        if length:
            keys[slot, length - 1] = key[slot]
            values[slot, length - 1] = value[slot]


def _lengths(keys: Tensor, lengths: Tensor) -> list[int]:
    found: list[int] = lengths.tolist()
    for slot, length in enumerate(found):
        if not 0 <= length <= keys.shape[1]:
            raise ValueError(f"lengths[{slot}]={length} is outside [0, {keys.shape[1]}]")
    return found
