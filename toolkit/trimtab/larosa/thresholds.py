"""Thresholds found in the sparse model itself."""

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
class Fitting:
    """A selection that finds its own threshold in the first activations it is given.

    Parameters
    ----------
    site : str
    sparsity : float
        Share of them to drop.

    Attributes
    ----------
    threshold : float
        The smallest magnitude kept.
    """

    site: str
    sparsity: float
    threshold: float = 0.0

    def __call__(self, z: Tensor) -> Tensor:
        """Zero exactly the smallest share of activations [..., d], but for ties."""
        dropped = round(self.sparsity * z.numel())
        if dropped:
            magnitudes = z.abs().float().flatten()
            self.threshold = float(magnitudes.kthvalue(dropped + 1).values)
        return keep_above(z, self.threshold)


def fit_thresholds(
    model: PreTrainedModel, plan: Plan, tensors: Mapping[str, Tensor], windows: Tensor
) -> Plan:
    """Return the plan with thresholds that drop the planned shares in the sparse model.

    What a site sees depends on what all sites before it dropped: thresholds taken from the dense
    model drop too little. So they are found one after the other, each in the activations that
    the ones before it leave.

    Parameters
    ----------
    windows : Tensor
        Token ids, int64 of shape [windows, length].
    """
    fittings: dict[str, list[Fitting]] = {}

    def fitting(site: str, layer: int) -> Fitting:
        part = Fitting(site, plan.sites[site][layer].sparsity)
        fittings.setdefault(site, []).append(part)
        return part

    with sparsified(model, plan, tensors, fitting), torch.inference_mode():
        stream = LayerwiseForward(model, adapter_for(model), windows)
        for index in track(range(len(stream.layers)), "Thresholds", len(stream.layers)):
            stream.hidden = stream.run(index, stream.hidden).cpu()
    sites = {
        name: [
            replace(part, threshold=found.threshold)
            for part, found in zip(row, fittings[name], strict=True)
        ]
        for name, row in plan.sites.items()
    }
    return replace(plan, sites=sites)
