"""The plain PyTorch meaning of every kernel: what the fast ones are tested against."""

from __future__ import annotations

import torch
from torch import Tensor


def keep_topk(x: Tensor, keep: int) -> Tensor:
    """Zero all but the `keep` entries of largest magnitude along the last dimension.

    Exactly `keep` positions survive in every row. Of equal magnitudes the lowest index wins,
    and NaN counts as the largest, so that it is never dropped silently.

    Parameters
    ----------
    x : Tensor
        Floating point, of shape [..., d].
    keep : int
        Between 0 and d.

    Returns
    -------
    Tensor
        Of the shape and dtype of `x`; `x` itself where nothing is dropped.

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

    Magnitude and threshold are compared in float32, or in float64 where `x` is. NaN stays.

    Parameters
    ----------
    x : Tensor
        Floating point, of shape [..., d].
    threshold : float
        At least 0; 0 drops nothing.
    cap : int, optional
        Where more entries of a row reach the threshold, the largest `cap` stay, as in
        `keep_topk`.
    """
    wide = x if x.dtype == torch.float64 else x.float()
    passing = x.masked_fill(wide.abs() < threshold, 0)
    return passing if cap is None else keep_topk(passing, min(cap, x.shape[-1]))


def sparse_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, threshold: float = 0.0
) -> Tensor:
    """Return ``keep_above(x, threshold) @ weight + bias``: a dense product on masked input.

    Parameters
    ----------
    x : Tensor
        Floating point, of shape [..., d].
    weight : Tensor
        Input-major, of shape [d, n]: one row for each entry of `x`.
    bias : Tensor, optional
        Of shape [n].
    threshold : float
        At least 0.
    """
    masked = keep_above(x, threshold) if threshold > 0 else x
    return torch.nn.functional.linear(masked, weight.t(), bias)


def int8_linear(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """Return ``(x @ weight) * scale`` in the dtype of `x`: the columns of `weight` are scaled.

    Parameters
    ----------
    x : Tensor
        Floating point, of shape [..., d].
    weight : Tensor
        int8 of shape [d, n].
    scale : Tensor
        Of the columns, float32 of shape [n].
    """
    return ((x @ weight.to(x.dtype)) * scale).to(x.dtype)
