"""Thresholds, found in the sparse model itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from trimtab import shards
from trimtab.larosa.apply import sparsified
from trimtab.larosa.plan import Plan
from trimtab.models.adapter import adapter_for
from trimtab.models.layerwise import LayerwiseForward
from trimtab.progress import track
from trimtab_kernels.sparse_linear import keep_above

LOW = 16  # bits: magnitudes are counted by the others first


@dataclass
class ThresholdFinder:
    """A selector that finds its own threshold in the activations it is given.

    Parameters
    ----------
    sparsity : float
        Share of them to drop.
    length : int
        Tokens of a text.
    dense_prefix : int
        How many of them, from the first on, drop nothing.

    Attributes
    ----------
    threshold : float
        The smallest magnitude kept.
    """

    sparsity: float
    length: int
    dense_prefix: int
    threshold: float = 0.0

    def __call__(self, z: Tensor) -> Tensor:
        """Zero the share of activations [..., d] with the smallest magnitudes; ties are kept."""
        texts = z.reshape(-1, self.length, z.shape[-1])
        prefix, rest = texts[:, : self.dense_prefix], texts[:, self.dense_prefix :]
        self.threshold = smallest_kept(rest.abs().float(), self.sparsity)
        return torch.cat([prefix, keep_above(rest, self.threshold)], dim=1).reshape(z.shape)


def smallest_kept(magnitudes: Tensor, share: float) -> float:
    """Return the smallest of the magnitudes that are left when a share of them is dropped.

    They are those of all processes. Positive float32 numbers are in the same order as their bits.

    Parameters
    ----------
    magnitudes : Tensor
        float32, of any shape.
    share : float
        In [0, 1). For what rounds to none of them the result is 0.
    """
    bits = magnitudes.flatten().view(torch.int32)
    high = bits >> LOW
    seen = shards.summed(torch.bincount(high, minlength=2 ** (31 - LOW))).cumsum(0)
    dropped = round(share * int(seen[-1]))
    if not dropped:
        return 0.0
    first = int(torch.searchsorted(seen, dropped, right=True))
    left = dropped - (int(seen[first - 1]) if first else 0)
    low = bits[high == first] & (2**LOW - 1)
    seen = shards.summed(torch.bincount(low, minlength=2**LOW)).cumsum(0)
    found = (first << LOW) + int(torch.searchsorted(seen, left, right=True))
    return float(torch.tensor(found, dtype=torch.int32).view(torch.float32))


def find_thresholds(
    model: PreTrainedModel,
    plan: Plan,
    tensors: Mapping[str, Tensor],
    windows: Tensor,
    dense_prefix: int,
) -> Plan:
    """Return the plan with thresholds that drop the planned shares in the sparse model.

    What a site sees depends on what all sites before it dropped, and thresholds taken from the
    dense model drop too little. So they are found one after the other, each in the activations
    that the ones before it leave.

    Parameters
    ----------
    windows : Tensor
        Token ids, int64 of shape [windows, length].
    dense_prefix : int
        Leading tokens of every window that drop nothing.
    """
    finders: dict[str, list[ThresholdFinder]] = {}

    def finder(site: str, layer: int) -> ThresholdFinder:
        part = ThresholdFinder(plan.sites[site][layer].sparsity, windows.shape[1], dense_prefix)
        finders.setdefault(site, []).append(part)
        return part

    with sparsified(model, plan, tensors, finder), torch.inference_mode():
        forward = LayerwiseForward(model, adapter_for(model), shards.mine(windows))
        for index in track(range(len(forward.layers)), "Thresholds", len(forward.layers)):
            forward.hidden = forward.run(index, forward.hidden).cpu()
    sites = {
        name: [
            replace(part, threshold=found.threshold)
            for part, found in zip(row, finders[name], strict=True)
        ]
        for name, row in plan.sites.items()
    }
    return replace(plan, sites=sites)
