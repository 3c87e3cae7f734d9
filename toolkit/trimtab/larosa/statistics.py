"""Sums over tokens: what calibration keeps of the activations and gradients it sees.

Processes that share a calibration (`trimtab.shards`) each see some of the windows of text, and a
sum is that over all of them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, bincount

from trimtab import shards

HEADROOM = 16  # bits by which a sum may exceed the first window's
OCTAVES = 2**8  # of positive float32 numbers
DROPPED_BITS = 12  # of float32's 23 mantissa bits: bins are 2⁻¹¹ wide, relative to their value


class Sum:
    """A sum of windows' parts in float64, the same to the bit in whatever order they are added.

    Every part is rounded to multiples of one power of two, 2⁻³⁶ of the first window's largest
    entry. Sums of these are exact until they are 2¹⁷ times that entry; larger ones are rounded.

    Parameters
    ----------
    shape : int
    """

    def __init__(self, *shape: int) -> None:
        self._own = torch.zeros(shape, dtype=torch.float64)
        self._rounding: float | None = None

    def add(self, part: Tensor) -> None:
        """Add a float64 tensor of the sum's shape, which is overwritten."""
        if self._rounding is None:
            exponent = math.frexp(largest)[1] if (largest := float(part.abs().max())) else -1000
            self._rounding = shards.agreed(math.ldexp(1.5, exponent + HEADROOM))
        # The last bits of what is near 1.5 · 2ⁿ are those that are left.
        part.add_(self._rounding).sub_(self._rounding)
        self._own = self._own.to(part.device).add_(part)

    def total(self) -> Tensor:
        """Return the sum over all processes, on the host; nothing can be added any more."""
        return shards.summed(self._own).cpu()

    def total_of(self, rows: Tensor) -> Tensor:
        """Return `total`, where all rows but those that a mask names are zero."""
        found = torch.zeros_like(self._own)
        found[rows] = shards.summed(self._own[rows])
        return found.cpu()


class SecondMoment(Sum):
    """XᵀX over all tokens.

    Parameters
    ----------
    width : int
        Entries of a token's activation, d.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width, width)

    def update(self, x: Tensor) -> None:
        """Add activations of shape [..., d]."""
        rows = x.flatten(0, -2).double()
        self.add(rows.T @ rows)


class HeadMoment(Sum):
    """XᵀX for every KV head, summed over the query heads that read it.

    Parameters
    ----------
    kv_heads, head_dim : int
        As in `HeadShape`.
    """

    def __init__(self, kv_heads: int, head_dim: int) -> None:
        super().__init__(kv_heads, head_dim, head_dim)
        self._shape = kv_heads, head_dim

    def update(self, x: Tensor) -> None:
        """Add activations of shape [..., heads * head_dim]."""
        kv_heads, head_dim = self._shape
        rows = x.double().reshape(-1, kv_heads, x.shape[-1] // kv_heads // head_dim, head_dim)
        rows = rows.transpose(0, 1).flatten(1, 2)
        self.add(rows.mT @ rows)


class SquareSum(Sum):
    """The sum of every entry's square over all tokens.

    Parameters
    ----------
    width : int
        Entries of a token's activation, d.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width)

    def update(self, x: Tensor) -> None:
        """Add activations of shape [..., d]."""
        self.add(x.flatten(0, -2).double().square().sum(0))


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
        self._counts = torch.zeros(OCTAVES, 2 ** (23 - DROPPED_BITS), dtype=torch.int64)
        self._spent = Sum(*self._counts.shape)

    def update(self, x: Tensor) -> None:
        """Add activations of shape [..., d]."""
        rows = x.float().flatten(0, -2)
        bins = (rows.abs().view(torch.int32) >> DROPPED_BITS).flatten()
        spent = (rows.double().square() * self.costs.to(rows.device)).flatten()
        shape, size = self._counts.shape, self._counts.numel()
        counts = bincount(bins, minlength=size).view(shape)
        self._counts = self._counts.to(rows.device).add_(counts)
        sums = binned(bins, spent, size) if rows.is_cuda else bincount(bins, spent, minlength=size)
        self._spent.add(sums.view(shape))

    def below(self, shares: Tensor) -> tuple[Tensor, Tensor]:
        """Return, for each share of the smallest entries, what bounds them and what they cost.

        All processes call it, and nothing can be added any more.

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
        own = self._counts.cpu()
        used = shards.summed(own.sum(1)) > 0  # few of the octaves are: the rest is not sent
        counts = torch.zeros_like(own)
        counts[used] = shards.summed(own[used])
        seen = counts.flatten().cumsum(0)
        tokens = seen[-1].float() / len(self.costs)
        index = torch.searchsorted(seen, shares * seen[-1], right=True)
        thresholds = (index << DROPPED_BITS).to(torch.int32).view(torch.float32)
        every = self._spent.total_of(used).flatten()
        spent = torch.cat([torch.zeros(1, dtype=torch.float64), every.cumsum(0)])
        return thresholds.double() * (shares > 0), spent[index] * (shares > 0) / tokens


def binned(bins: Tensor, values: Tensor, size: int) -> Tensor:
    """Return the sum of the values in every bin, the same to the bit in whatever order.

    A GPU adds up in another order every time, which sums of integers do not depend on. So every
    value is rounded to a multiple of one power of two, the smallest for which n of the largest in
    its octave of bins are less than 2⁶² of it.

    Parameters
    ----------
    bins, values : Tensor
        int32 and float64, not negative, of shape [n]; bins as those of `MagnitudeHistogram`.
    size : int
        How many bins there are.

    Returns
    -------
    Tensor
        float64 of shape [size].
    """
    octaves = bins.long() // (size // OCTAVES)
    largest = values.new_zeros(OCTAVES).scatter_reduce_(0, octaves, values, "amax")
    exponents = (torch.frexp(largest).exponent + len(bins).bit_length() - 62).double()
    whole = torch.ldexp(values, -exponents[octaves]).round_().long()
    sums = whole.new_zeros(size).scatter_add_(0, bins.long(), whole)
    return torch.ldexp(sums.double(), exponents.repeat_interleave(size // OCTAVES))
