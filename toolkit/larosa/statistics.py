"""Sums over tokens: what calibration keeps of the activations it sees."""

from __future__ import annotations

import torch
from torch import Tensor

DROPPED_BITS = 12  # of float32's 23 mantissa bits: bins are 2⁻¹¹ wide, relative to their value


class SecondMoment:
    """XᵀX over all tokens, in float64.

    Parameters
    ----------
    width : int
        Entries of a token's activation, d.
    """

    def __init__(self, width: int) -> None:
        self.total = torch.zeros(width, width, dtype=torch.float64)

    def update(self, x: Tensor) -> None:
        """Add activations of shape [..., d]."""
        rows = x.flatten(0, -2).double()
        self.total = self.total.to(rows.device).addmm_(rows.T, rows)


class MagnitudeHistogram:
    """How often each magnitude occurs, exact to one part in 2048, whatever their range.

    The bits of a positive float32 order as its value does: the upper bits are the bin.
    """

    def __init__(self) -> None:
        self.counts = torch.zeros(2 ** (31 - DROPPED_BITS), dtype=torch.int64)

    def update(self, x: Tensor) -> None:
        """Add the entries of `x`, of any shape."""
        bins = x.abs().float().flatten().view(torch.int32) >> DROPPED_BITS
        self.counts += torch.bincount(bins, minlength=len(self.counts)).cpu()

    def quantile(self, share: float) -> float:
        """Return the magnitude that `share` of the entries lie below, in [0, 1)."""
        below = self.counts.cumsum(0)
        index = int(torch.searchsorted(below, share * below[-1], right=True))
        return float(torch.tensor(index << DROPPED_BITS, dtype=torch.int32).view(torch.float32))
