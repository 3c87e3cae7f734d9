"""The bases that a site may be run in, and what dropping in each of them costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trimtab.larosa.bases import (
    LEAST_GAIN,
    entry_costs,
    metric_for,
    per_head,
    through,
    weighted_pca,
)
from trimtab.larosa.precision import stored_transform, transform_matrix
from trimtab.larosa.settings import PLAIN, RESIDUAL, TRANSFORM, Basis, LaRoSASettings
from trimtab.larosa.statistics import MagnitudeHistogram
from trimtab.models.adapter import Adapter, HeadShape, input_major, module_device, norm_gain


@dataclass
class Candidate:
    """A basis of one site, in the coordinates of the norm before its gain where there is one.

    Attributes
    ----------
    basis : str
        As in `SitePlan`.
    matrix : Tensor
        M of `trimtab.larosa.bases`, float64 of shape [d] or [d, d].
    saved : dict of str to Tensor
        What applying it needs, by name: ``gain``, ``transform``, ``scale``.
    histogram : MagnitudeHistogram
        Of the activations in this basis.
    """

    basis: str
    matrix: Tensor
    saved: dict[str, Tensor]
    histogram: MagnitudeHistogram

    def update(self, x: Tensor) -> None:
        """Count activations of shape [..., d]."""
        matrix = self.matrix.to(x.device, torch.float32)
        self.histogram.update(through(x.float(), matrix))


def candidates(
    adapter: Adapter,
    heads: HeadShape,
    layer: nn.Module,
    moments: Mapping[str, Tensor],
    sensitivities: Mapping[str, Tensor],
    rotation: Tensor | None,
    settings: LaRoSASettings,
) -> dict[str, list[Candidate]]:
    """Return the candidates of every site of a layer, those without a transform first.

    Parameters
    ----------
    moments, sensitivities : mapping
        As the sweeps leave them; without sensitivities costs are errors of the outputs.
    rotation : Tensor or None
        Q of the residual stream at this layer, of shape [d, d].
    """
    found: dict[str, list[Candidate]] = {}
    device = module_device(layer)
    for site in adapter.sites:
        readers = adapter.readers(layer, site)
        weight = torch.cat([input_major(reader) for reader in readers], dim=1).double()
        sensitivity = sensitivities[site.name].to(device) if sensitivities else None
        if site.norm is not None:
            gain = norm_gain(layer.get_submodule(site.norm))
            moment = moments[site.name].to(device)
            found[site.name] = _behind_norm(gain, weight, moment, sensitivity, rotation, settings)
        elif site.name == "h2":
            moment = moments["h2"].to(device)
            found["h2"] = [_values(heads, weight, moment, sensitivity, settings)]
        else:
            folds = settings.fold_norms and adapter.up is not None
            found[site.name] = [_gated(weight, sensitivity, folds)]
    return found


def cost_metric(weight: Tensor, sensitivity: Tensor | None) -> Tensor:
    """Return the metric that costs are in: the blend with F where it is known, else W Wᵀ."""
    basis = Basis.output_pca if sensitivity is None else Basis.fisher_pca
    return metric_for(basis, weight, sensitivity)


def _behind_norm(
    gain: Tensor,
    weight: Tensor,
    moment: Tensor,
    sensitivity: Tensor | None,
    rotation: Tensor | None,
    settings: LaRoSASettings,
) -> list[Candidate]:
    read = gain[:, None] * weight  # what reads the norm before its gain
    cost = cost_metric(read, sensitivity)
    # `pca` looks for the axes of the activations that the weights read, gain included.
    metric = (
        torch.diag(gain.square())
        if settings.basis is Basis.pca
        else metric_for(settings.basis, read, sensitivity)
    )
    if rotation is not None:
        rotation = rotation.to(gain.device, torch.float64)
        moment, cost, metric = (rotation.T @ part @ rotation for part in (moment, cost, metric))
        weight, gain = rotation.T @ read, torch.ones_like(gain)

    def candidate(basis: str, matrix: Tensor, saved: dict[str, Tensor]) -> Candidate:
        histogram = MagnitudeHistogram(entry_costs(cost, matrix))
        if rotation is not None:
            matrix = rotation * matrix if matrix.ndim == 1 else rotation @ matrix
        return Candidate(basis, matrix, saved, histogram)

    scale = gain * _row_norms(weight, settings.fold_norms)
    found = [candidate(PLAIN if rotation is None else RESIDUAL, scale, {"gain": scale.float()})]
    if settings.basis is not Basis.none:
        transform = weighted_pca(moment, metric)[1]
        saved = stored_transform(transform, gain, settings.precision)
        found.append(candidate(TRANSFORM, transform_matrix(saved), saved))
    return found


def _values(
    heads: HeadShape,
    weight: Tensor,
    moment: Tensor,
    sensitivity: Tensor | None,
    settings: LaRoSASettings,
) -> Candidate:
    """Return h2's candidate: a map of the values of every KV head, or none."""
    shared = heads.heads // heads.kv_heads
    # Block by block, the weights behind all query heads of one KV head side by side.
    blocks = weight.reshape(heads.kv_heads, shared, heads.head_dim, -1).transpose(1, 2).flatten(2)
    blocks = blocks / shared**0.5
    folds = settings.fold_values and settings.basis is not Basis.none
    maps, costs = [], []
    for index, block in enumerate(blocks):
        known = None if sensitivity is None else sensitivity[index]
        axes = torch.eye(heads.head_dim, dtype=torch.float64, device=weight.device)
        if folds:
            axes = weighted_pca(moment[index], metric_for(settings.basis, block, known))[1]
            axes = axes.float().double()
        maps.append(axes)
        costs.append(entry_costs(cost_metric(block, known), axes).repeat(shared))
    stacked = torch.stack(maps)
    saved = {"transform": stacked.float()} if folds else {}
    matrix = per_head(stacked, heads.heads) if folds else weight.new_ones(len(weight))
    return Candidate(PLAIN, matrix, saved, MagnitudeHistogram(torch.cat(costs)))


def _gated(weight: Tensor, sensitivity: Tensor | None, folds: bool) -> Candidate:
    squares = weight.square().sum(1)
    cost = squares if sensitivity is None else cost_metric(weight, sensitivity)
    scale = _row_norms(weight, folds)
    saved = {"gain": scale.float()} if folds else {}
    return Candidate(PLAIN, scale, saved, MagnitudeHistogram(entry_costs(cost, scale)))


def _row_norms(weight: Tensor, folds: bool) -> Tensor:
    """Return the row norms of input-major weights, of mean one: WINA's scores, arXiv 2505.19427.

    Folded into what precedes, they make the magnitude of an activation say how much it changes
    the outputs. Ones where nothing is to be folded.
    """
    if not folds:
        return weight.new_ones(len(weight))
    norms = weight.norm(dim=1)
    return norms.maximum(LEAST_GAIN * norms.max()) / norms.mean()
