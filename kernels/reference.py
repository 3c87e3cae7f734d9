"""The plain PyTorch meaning of every kernel: what the fast ones are tested against."""

from __future__ import annotations

import torch
from torch import Tensor


def keep_topk(x: Tensor, keep: int) -> Tensor:
    """Zero all but the `keep` entries of largest magnitude along the last dimension.

    Exactly `keep` positions survive in every row, also where magnitudes are equal.

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
    kept = x.abs().topk(keep, dim=-1, sorted=False).indices
    return torch.zeros_like(x).scatter_(-1, kept, x.gather(-1, kept))


def keep_above(x: Tensor, threshold: float) -> Tensor:
    """Zero the entries whose magnitude is below `threshold` (TEAL, arXiv 2408.14690, eq. 2).

    Parameters
    ----------
    x : Tensor
        Floating point, of any shape.
    threshold : float
        At least 0; 0 drops nothing.
    """
    return x.masked_fill(x.abs() < threshold, 0)
