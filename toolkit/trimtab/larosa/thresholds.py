"""Thresholds, found in the sparse model itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from trimtab.larosa.apply import sparsified
from trimtab.larosa.plan import Plan
from trimtab.models.adapter import adapter_for
from trimtab.models.layerwise import LayerwiseForward
from trimtab.progress import track
from trimtab_kernels.sparse_linear import keep_above


@dataclass
class ThresholdFinder:
    """A selector that finds its own threshold in the activations it is given.

    Parameters
    ----------
    sparsity : float
        Share of them to drop.

    Attributes
    ----------
    threshold : float
        The smallest magnitude kept.
    """

    sparsity: float
    threshold: float = 0.0

    def __call__(self, z: Tensor) -> Tensor:
        """Zero the share of activations [..., d] with the smallest magnitudes; ties are kept."""
        dropped = round(self.sparsity * z.numel())
        if dropped:
            magnitudes = z.abs().float().flatten()
            self.threshold = float(magnitudes.kthvalue(dropped + 1).values)
        return keep_above(z, self.threshold)


def find_thresholds(
    model: PreTrainedModel, plan: Plan, tensors: Mapping[str, Tensor], windows: Tensor
) -> Plan:
    """Return the plan with thresholds that drop the planned shares in the sparse model.

    What a site sees depends on what all sites before it dropped, and thresholds taken from the
    dense model drop too little. So they are found one after the other, each in the activations
    that the ones before it leave.

    Parameters
    ----------
    windows : Tensor
        Token ids, int64 of shape [windows, length].
    """
    finders: dict[str, list[ThresholdFinder]] = {}

    def finder(site: str, layer: int) -> ThresholdFinder:
        part = ThresholdFinder(plan.sites[site][layer].sparsity)
        finders.setdefault(site, []).append(part)
        return part

    with sparsified(model, plan, tensors, finder), torch.inference_mode():
        forward = LayerwiseForward(model, adapter_for(model), windows)
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
