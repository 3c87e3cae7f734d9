"""How much to drop where: sparsities, and a basis, for every site of every layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from torch import Tensor

from trimtab.errors import MisfitError

ALPHAS = np.linspace(0.7, 1.3, 25)


@dataclass(frozen=True)
class Option:
    """One basis for one site of one layer, and what dropping in it costs.

    Parameters
    ----------
    site, basis : str
    sparsities : Tensor
        Shares to drop, ascending from 0, float64 of shape [n].
    thresholds, costs : Tensor
        At each of these, the magnitude that the dropped entries lie below, and what dropping
        them costs per token, in the metric that all sites share; float64 of shape [n].
    weight_bytes, transform_bytes : int
        Bytes of the weights that read the site, and of the transform it needs.
    """

    site: str
    basis: str
    sparsities: Tensor
    thresholds: Tensor
    costs: Tensor
    weight_bytes: int
    transform_bytes: int

    def at(self, sparsity: float) -> Choice:
        """Return the option at a sparsity, interpolated between those measured."""
        threshold, cost = (
            float(np.interp(sparsity, self.sparsities.numpy(), curve.numpy()))
            for curve in (self.thresholds, self.costs)
        )
        return Choice(self, sparsity, threshold, cost)


@dataclass(frozen=True)
class Choice:
    """An option at one sparsity."""

    option: Option
    sparsity: float
    threshold: float
    cost: float

    @property
    def saved(self) -> float:
        """Bytes a token need not read, less those of the transform."""
        return self.sparsity * self.option.weight_bytes - self.option.transform_bytes


def steepest(sites: Sequence[Sequence[Option]], target: float) -> list[Choice]:
    """Start with everything dense, and always take the step that costs least per byte it saves.

    A step takes one site to the next corner of its lower convex hull over all its options and
    sparsities, so it may change the basis and pay for a transform. In this order the summed cost
    is the least there is at every number of bytes it passes. TEAL's greedy allocation (arXiv
    2408.14690, section 4.3) divides the sparsity of each block by itself; this one takes its steps
    over the whole model, per byte, and with a choice of basis.

    Parameters
    ----------
    sites : sequence of sequence of Option
        The options of every site of every layer, the ones without a transform first.
    target : float
        Bytes to save per token.

    Raises
    ------
    MisfitError
        If all steps together save less.
    """
    hulls = [_hull(options) for options in sites]
    steps = sorted(
        (
            ((after.cost - before.cost) / (after.saved - before.saved), index, number)
            for index, hull in enumerate(hulls)
            for number, (before, after) in enumerate(pairwise(hull))
        ),
    )
    chosen = [hull[0] for hull in hulls]
    saved = sum(choice.saved for choice in chosen)
    for _, index, number in steps:
        if saved >= target:
            break
        before, after = hulls[index][number], hulls[index][number + 1]
        missing = target - saved
        if before.option is after.option and after.saved - before.saved > missing:
            part = missing / before.option.weight_bytes
            chosen[index] = before.option.at(before.sparsity + part)
            break
        chosen[index] = after
        saved += after.saved - before.saved
    _require(sum(choice.saved for choice in chosen), target, sites)
    return chosen


def uniform(sites: Sequence[Option], target: float) -> list[Choice]:
    """Give every site the one sparsity at which all of them together save `target` bytes."""
    weights, transforms = _bytes(sites)
    return _at(sites, [(target + transforms) / weights] * len(sites), target)


def alpha_grid(sites: Sequence[Option], target: float, favoured: Sequence[str]) -> list[Choice]:
    """Keep α times the average share at the favoured sites, with the α that costs least.

    LaRoSA, section 3.3: k = α (1 - p) d, with α from a grid. All other sites keep one share, which
    makes up for it: every α saves the same bytes, so that their costs compare.

    Parameters
    ----------
    favoured : sequence of str
        The names of the sites that α scales, which are those with a rotation.
    """
    weights, transforms = _bytes(sites)
    kept = 1 - (target + transforms) / weights
    share = _bytes([site for site in sites if site.site in favoured])[0] / weights
    best: list[Choice] = []
    for alpha in ALPHAS:
        others = kept * (1 - alpha * share) / (1 - share)
        kept_at = [kept * alpha if site.site in favoured else others for site in sites]
        pairs = zip(sites, kept_at, strict=True)
        if all(1 - float(site.sparsities[-1]) <= keep <= 1 for site, keep in pairs):
            found = _at(sites, [1 - keep for keep in kept_at], target)
            if not best or sum(c.cost for c in found) < sum(c.cost for c in best):
                best = found
    return best or uniform(sites, target)


def _hull(options: Sequence[Option]) -> list[Choice]:
    """Return the corners of the lower convex hull of cost over bytes saved, from all dense."""
    start = options[0].at(0.0)
    points = [
        Choice(option, float(p), float(threshold), float(cost))
        for option in options
        for p, threshold, cost in zip(
            option.sparsities, option.thresholds, option.costs, strict=True
        )
    ]
    hull = [start]
    for point in sorted(points, key=lambda choice: (choice.saved, choice.cost)):
        if point.saved <= hull[-1].saved:
            continue
        while len(hull) > 1 and _slope(hull[-2], point) <= _slope(hull[-2], hull[-1]):
            hull.pop()
        hull.append(point)
    return hull


def _slope(before: Choice, after: Choice) -> float:
    return (after.cost - before.cost) / (after.saved - before.saved)


def _bytes(sites: Sequence[Option]) -> tuple[int, int]:
    return sum(site.weight_bytes for site in sites), sum(site.transform_bytes for site in sites)


def _at(sites: Sequence[Option], sparsities: Sequence[float], target: float) -> list[Choice]:
    chosen = [
        site.at(min(max(sparsity, 0.0), float(site.sparsities[-1])))
        for site, sparsity in zip(sites, sparsities, strict=True)
    ]
    _require(sum(choice.saved for choice in chosen), target, [[site] for site in sites])
    return chosen


def _require(saved: float, target: float, sites: Sequence[Sequence[Option]]) -> None:
    dense = sum(options[0].weight_bytes for options in sites)
    if saved < target - 1e-6 * dense:
        raise MisfitError(
            f"at most {saved / dense:.3f} of the block weights' bytes can be saved, and "
            f"{target / dense:.3f} are asked for (transforms counted): lower larosa.sparsity"
        )
