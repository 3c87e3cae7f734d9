"""Bases in which activations are dropped, and weights that undo them. All of it in float64.

A basis of a site is a linear map of its activations: a vector where every entry is only scaled,
else a matrix. Dropping happens on ``z = x M``, and the weights that read the site become M⁻¹ W.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trimtab.errors import TrimtabError
from trimtab.larosa.settings import Basis

LEAST_GAIN = 1e-6


def pca(second_moment: Tensor) -> tuple[Tensor, Tensor]:
    """Return the principal axes of activations, by descending variance.

    With X the calibration activations [tokens, d] and XᵀX = Q Λ Qᵀ, the rotated activations
    X Q are uncorrelated and hold as much of their energy in as few entries as any rotation
    allows (LaRoSA, section 3.2). The moment is not centred, so that the rotation is linear.
    Each axis points the way that makes its entry of largest magnitude positive.

    Parameters
    ----------
    second_moment : Tensor
        XᵀX or its mean, symmetric, float64 of shape [..., d, d].

    Returns
    -------
    variance : Tensor
        Λ, float64 of shape [..., d], descending.
    axes : Tensor
        Orthogonal Q, float64 of shape [..., d, d], an axis in each column.

    Raises
    ------
    TrimtabError
        If the moment is not finite.
    """
    if not second_moment.isfinite().all():
        raise TrimtabError(
            "the calibration activations are not finite: load the model in another dtype "
            "(model.dtype=float32)"
        )
    variance, axes = (part.flip(-1) for part in torch.linalg.eigh(second_moment.double()))
    largest = axes.gather(-2, axes.abs().argmax(-2, keepdim=True))
    return variance, axes * largest.sign()


def weighted_pca(second_moment: Tensor, metric: Tensor) -> tuple[Tensor, Tensor]:
    """Return the basis whose entries cost what their squares say, by descending cost.

    A change δ of the activations costs δ G δᵀ. With C the second moment, the basis is T = G^½ R
    with G^½ C G^½ = R Λ Rᵀ: on z = x T the cost of dropping entries is exactly the sum of their
    squares, so keeping the largest magnitudes is the best there is in this basis, and the entries
    are uncorrelated. With G the identity it is `pca`.

    Directions whose gain is under 1e-6 of the largest are kept at that floor, which makes T
    invertible whatever the metric. Where it is zero, as behind weights that were pruned to
    nothing, no basis is better than another, and it is taken for the identity.

    Parameters
    ----------
    second_moment, metric : Tensor
        C and G, symmetric and positive semidefinite, float64 of shape [..., d, d].

    Returns
    -------
    variance : Tensor
        Λ, float64 of shape [..., d], descending.
    transform : Tensor
        T, float64 of shape [..., d, d].
    """
    energy, directions = torch.linalg.eigh(metric)
    gain = energy.clamp(min=0).sqrt()
    largest = gain.amax(-1, keepdim=True)
    gain = torch.where(largest > 0, gain.maximum(LEAST_GAIN * largest), 1)
    root = directions * gain[..., None, :] @ directions.mT
    variance, axes = pca(root @ second_moment @ root)
    return variance, root @ axes


def metric_for(basis: Basis, weight: Tensor, sensitivity: Tensor | None) -> Tensor:
    """Return G, what a change of the activations is measured by in a basis.

    `pca` measures the activations themselves; `output_pca` the change of what the weights make
    of them, G = W Wᵀ; `fisher_pca` blends that with the change of what the whole model predicts,
    for which the Fisher matrix F = E[g gᵀ] stands, g being the gradient of the log-likelihood of
    a token drawn from the model's own prediction: to second order δ F δᵀ / 2 is the divergence.
    The two are blended in equal shares of their traces, in the units of F. F alone is estimated
    from few tokens and leaves directions out that other text needs.

    Parameters
    ----------
    weight : Tensor
        Input-major weights of all readers side by side, of shape [d, outputs].
    sensitivity : Tensor or None
        F, float64 of shape [d, d]; of shape [d] where only its diagonal is known. Needed by
        `fisher_pca`.

    Returns
    -------
    Tensor
        Float64 of shape [d, d], or [d] where `sensitivity` is the diagonal.
    """
    wide = weight.double()
    if basis not in (Basis.output_pca, Basis.fisher_pca):
        return torch.eye(len(wide), dtype=torch.float64, device=wide.device)
    diagonal = sensitivity is not None and sensitivity.ndim == 1
    gram = wide.square().sum(1) if diagonal else wide @ wide.T
    if basis is Basis.output_pca:
        return gram
    assert sensitivity is not None
    return _blend(sensitivity, gram)


def _blend(sensitivity: Tensor, gram: Tensor) -> Tensor:
    """Return the two in equal shares of their traces; W Wᵀ alone where one of them is zero."""
    felt, made = (part.sum() if part.ndim == 1 else part.trace() for part in (sensitivity, gram))
    return (sensitivity + gram * (felt / made)) / 2 if felt > 0 and made > 0 else gram


def through(x: Tensor, basis: Tensor) -> Tensor:
    """Return ``x M``; a vector stands for the diagonal matrix."""
    return x * basis if basis.ndim == 1 else x @ basis


def undone(weight: Tensor, basis: Tensor) -> Tensor:
    """Return M⁻¹ W: the weight that gives on ``x M`` what `weight` gives on ``x``.

    The inverse is that of the basis as it is stored, so rounding it to a storage dtype is not an
    error of the result.

    Parameters
    ----------
    weight : Tensor
        Input-major, float64 of shape [d, outputs].
    basis : Tensor
        M, float64 of shape [d, d], or its diagonal of shape [d]. An entry scaled by zero, which
        a norm's gain may do, is read by nothing.
    """
    if basis.ndim == 2:
        return torch.linalg.solve(basis, weight)
    return torch.where(basis[:, None] == 0, 0, weight / basis[:, None])


def entry_costs(metric: Tensor, basis: Tensor) -> Tensor:
    """Return what a unit of each entry of ``z = x M`` costs: the diagonal of M⁻¹ G M⁻ᵀ.

    Parameters
    ----------
    metric : Tensor
        G, float64 of shape [d, d], or its diagonal of shape [d].
    basis : Tensor
        M, likewise.

    Returns
    -------
    Tensor
        Float64 of shape [d].
    """
    if basis.ndim == 1:
        costs = metric if metric.ndim == 1 else metric.diagonal()
        return torch.where(basis == 0, 0, costs / basis.square())
    inverse = torch.linalg.inv(basis)
    return (inverse @ metric * inverse).sum(1)


def per_head(blocks: Tensor, heads: int) -> Tensor:
    """Return KV heads' maps as one matrix over all query heads, block by block.

    Attention mixes the positions of a value and leaves its entries apart, so a map of the values
    of one KV head comes out in every query head that reads it.

    Parameters
    ----------
    blocks : Tensor
        Of shape [kv_heads, head_dim, head_dim].
    heads : int
        Query heads, a multiple of the KV heads.

    Returns
    -------
    Tensor
        Block-diagonal, of shape [heads * head_dim, heads * head_dim].
    """
    return torch.block_diag(*blocks.repeat_interleave(heads // len(blocks), dim=0))
