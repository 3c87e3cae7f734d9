"""Sums over tokens: what calibration keeps of the activations and gradients it sees."""

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


class HeadMoment:
    """XᵀX for every KV head, summed over the query heads that read it, in float64.

    Parameters
    ----------
    kv_heads, head_dim : int
        As in `HeadShape`.
    """

    def __init__(self, kv_heads: int, head_dim: int) -> None:
        self.total = torch.zeros(kv_heads, head_dim, head_dim, dtype=torch.float64)

    def update(self, x: Tensor) -> None:
        """Add activations of shape [..., heads * head_dim]."""
        kv_heads, head_dim, _ = self.total.shape
        rows = x.double().reshape(-1, kv_heads, x.shape[-1] // kv_heads // head_dim, head_dim)
        rows = rows.transpose(0, 1).flatten(1, 2)
        self.total = self.total.to(rows.device).baddbmm_(rows.mT, rows)


class SquareSum:
    """The sum of every entry's square over all tokens, in float64.

    Parameters
    ----------
    width : int
        Entries of a token's activation, d.
    """

    def __init__(self, width: int) -> None:
        self.total = torch.zeros(width, dtype=torch.float64)

    def update(self, x: Tensor) -> None:
        """Add activations of shape [..., d]."""
        squares = x.flatten(0, -2).double().square().sum(0)
        self.total = self.total.to(squares.device).add_(squares)


class MagnitudeHistogram:
    """How often each magnitude occurs, to one part in 2048, and what its entries cost.

    Positive float32 numbers are in the same order as their bits: the upper bits are the bin.

    Parameters
    ----------
    costs : Tensor
        What the square of each entry of a token is multiplied by, float64 of shape [d].
    """

    def __init__(self, costs: Tensor) -> None:
        self.costs = costs
        self.counts = torch.zeros(2 ** (31 - DROPPED_BITS), dtype=torch.int64)
        self.spent = torch.zeros(len(self.counts), dtype=torch.float64)
        self.tokens = 0

    def update(self, x: Tensor) -> None:
        """Add activations of shape [..., d]."""
        rows = x.float().flatten(0, -2)
        bins = (rows.abs().view(torch.int32) >> DROPPED_BITS).flatten()
        spent = rows.double().square() * self.costs.to(rows.device)
        size = len(self.counts)
        self.counts += torch.bincount(bins, minlength=size).cpu()
        self.spent += torch.bincount(bins, spent.flatten(), minlength=size).cpu()
        self.tokens += len(rows)

    def below(self, shares: Tensor) -> tuple[Tensor, Tensor]:
        """Return, for each share of the smallest entries, what bounds them and what they cost.

        Parameters
        ----------
        shares : Tensor
            In [0, 1), float64 of shape [n].

        Returns
        -------
        thresholds : Tensor
            The magnitude that these entries lie below, float64 of shape [n]; 0 for a share of 0.
        costs : Tensor
            The sum of their squares times `costs`, per token, float64 of shape [n].
        """
        seen = self.counts.cumsum(0)
        index = torch.searchsorted(seen, shares * seen[-1], right=True)
        thresholds = (index << DROPPED_BITS).to(torch.int32).view(torch.float32)
        spent = torch.cat([torch.zeros(1, dtype=torch.float64), self.spent.cumsum(0)])
        return thresholds.double() * (shares > 0), spent[index] * (shares > 0) / self.tokens
