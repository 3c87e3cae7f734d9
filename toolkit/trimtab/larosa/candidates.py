"""The bases that a site may run in, and what dropping in each of them costs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from trimtab.larosa.bases import (
    SMALLEST_RATIO,
    alternating,
    entry_costs,
    metric_for,
    per_head,
    weighted_pca,
)
from trimtab.larosa.candidate import Candidate
from trimtab.larosa.precision import stored_transform, transform_matrix
from trimtab.larosa.settings import PLAIN, RESIDUAL, TRANSFORM, Basis, LaRoSASettings
from trimtab.larosa.statistics import MagnitudeHistogram
from trimtab.models.adapter import Adapter, HeadShape, input_major, module_device, norm_weight


def candidates(
    adapter: Adapter,
    heads: HeadShape,
    layer: nn.Module,
    moments: Mapping[str, Tensor],
    fishers: Mapping[str, Tensor],
    rotation: Tensor | None,
    settings: LaRoSASettings,
) -> dict[str, list[Candidate]]:
    """Return the candidates of every site of a layer, the ones without a transform first.

    Parameters
    ----------
    moments, fishers : mapping of str to Tensor
        By the site's name, as `Passes` leaves them. Without Fisher second moments, costs are
        errors of the linear layers' outputs.
    rotation : Tensor or None
        Q of the residual stream at this layer, of shape [d, d].
    """
    found: dict[str, list[Candidate]] = {}
    device = module_device(layer)
    for site in adapter.sites:
        readers = adapter.readers(layer, site)
        read = torch.cat([input_major(reader) for reader in readers], dim=1).double()
        fisher = fishers[site.name].to(device) if fishers else None
        if site.norm is not None:
            weight = norm_weight(layer.get_submodule(site.norm))
            moment = moments[site.name].to(device)
            found[site.name] = _after_norm(weight, read, moment, fisher, rotation, settings)
        elif site is adapter.sites.attention_output:
            moment = moments[site.name].to(device)
            found[site.name] = [_of_values(heads, read, moment, fisher, settings)]
        else:
            folds = settings.fold_norms and adapter.up is not None
            found[site.name] = [_gated(read, fisher, folds)]
    return found


def cost_metric(read: Tensor, fisher: Tensor | None) -> Tensor:
    """Return the metric of the costs: the blend with F where it is known, else W Wᵀ.

    Parameters
    ----------
    read, fisher : Tensor
        As `weight` and `fisher` of `metric_for`.
    """
    return metric_for(Basis.output_pca if fisher is None else Basis.fisher_pca, read, fisher)


def _after_norm(
    weight: Tensor,
    read: Tensor,
    moment: Tensor,
    fisher: Tensor | None,
    rotation: Tensor | None,
    settings: LaRoSASettings,
) -> list[Candidate]:
    """Return the candidates of a site after a norm with this weight, which `read` multiplies."""
    absorbed = weight[:, None] * read
    cost = cost_metric(absorbed, fisher)
    # `pca` looks for the axes of the activations as they are read, after the norm's weight.
    metric = (
        torch.diag(weight.square())
        if settings.basis is Basis.pca
        else metric_for(settings.basis, absorbed, fisher)
    )
    if rotation is not None:
        rotation = rotation.to(weight.device, torch.float64)
        moment, cost, metric = (rotation.T @ part @ rotation for part in (moment, cost, metric))
        read, weight = rotation.T @ absorbed, torch.ones_like(weight)

    def candidate(basis: str, matrix: Tensor, saved: dict[str, Tensor]) -> Candidate:
        histogram = MagnitudeHistogram(entry_costs(cost, matrix))
        if rotation is not None:
            matrix = rotation * matrix if matrix.ndim == 1 else rotation @ matrix
        return Candidate(basis, matrix, saved, histogram)

    free = PLAIN if rotation is None else RESIDUAL
    scaled = weight * _row_norms(read, settings.fold_norms)
    found = [candidate(free, scaled, {"norm_weight": scaled.float()})]
    if settings.basis is not Basis.none:
        transform = alternating(weighted_pca(moment, metric)[1])
        saved = stored_transform(transform, weight, settings.precision)
        found.append(candidate(TRANSFORM, transform_matrix(saved), saved))
    return found


def _of_values(
    heads: HeadShape,
    read: Tensor,
    moment: Tensor,
    fisher: Tensor | None,
    settings: LaRoSASettings,
) -> Candidate:
    """Return the attention output's candidate: a map of the values of every KV head, or none."""
    shared = heads.heads // heads.kv_heads
    # One block a KV head: the weights that read its query heads, side by side.
    blocks = read.reshape(heads.kv_heads, shared, heads.head_dim, -1).transpose(1, 2).flatten(2)
    blocks = blocks / shared**0.5
    cost = cost_metric(blocks, fisher)
    if not (settings.fold_values and settings.basis is not Basis.none):
        costs = cost.diagonal(dim1=-2, dim2=-1).repeat(1, shared)
        return Candidate(PLAIN, read.new_ones(len(read)), {}, MagnitudeHistogram(costs.flatten()))
    metric = metric_for(settings.basis, blocks, fisher)
    axes = alternating(weighted_pca(moment, metric)[1]).float()
    maps = axes.double()
    costs = entry_costs(cost, maps).repeat(1, shared)
    histogram = MagnitudeHistogram(costs.flatten())
    return Candidate(PLAIN, per_head(maps, heads.heads), {"transform": axes}, histogram)


def _gated(read: Tensor, fisher: Tensor | None, folds: bool) -> Candidate:
    """Return the MLP activation's candidate, its entries rescaled if `folds`."""
    squares = read.square().sum(1)
    cost = squares if fisher is None else cost_metric(read, fisher)
    scale = _row_norms(read, folds)
    saved = {"up_scale": scale.float()} if folds else {}
    return Candidate(PLAIN, scale, saved, MagnitudeHistogram(entry_costs(cost, scale)))


def _row_norms(read: Tensor, folds: bool) -> Tensor:
    """Return the row norms of input-major weights, of mean one: WINA's scores, arXiv 2505.19427.

    Folded into what comes before, they make the magnitude of an activation say how much it changes
    the outputs. Ones where nothing is to be folded.
    """
    if not folds:
        return read.new_ones(len(read))
    norms = read.norm(dim=1)
    return norms.maximum(SMALLEST_RATIO * norms.max()) / norms.mean()
