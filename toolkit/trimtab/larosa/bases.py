"""Bases in which activations are dropped, and weights that undo them. All of it in float64.

A basis of a site is a linear map M of its activations: a vector where every entry is only scaled,
else a matrix. Entries of ``z = x M`` are dropped, and the weights that read the site become M⁻¹ W.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trimtab.larosa.settings import Basis

SMALLEST_RATIO = 1e-6  # of a scale to the largest of its kind


def pca(second_moment: Tensor) -> tuple[Tensor, Tensor]:
    """Return the principal axes of activations, by descending variance.

    With X the calibration activations [tokens, d] and XᵀX = Q Λ Qᵀ, the entries of X Q are
    uncorrelated, and as few of them hold as much of the energy as in any rotation (LaRoSA,
    section 3.2). The moment is not centred, so that the rotation is linear. Each axis points the
    way that makes its entry of largest magnitude positive.

    Parameters
    ----------
    second_moment : Tensor
        XᵀX or its mean, symmetric, float64 of shape [..., d, d].

    Returns
    -------
    variance : Tensor
        Λ, float64 of shape [..., d], descending.
    axes : Tensor
        Q, orthogonal, float64 of shape [..., d, d], with an axis in each column.
    """
    variance, axes = (part.flip(-1) for part in torch.linalg.eigh(second_moment.double()))
    largest = axes.gather(-2, axes.abs().argmax(-2, keepdim=True))
    return variance, axes * largest.sign()


def weighted_pca(second_moment: Tensor, metric: Tensor) -> tuple[Tensor, Tensor]:
    """Return the basis in which dropping entries costs the sum of their squares, dearest first.

    A change δ of the activations costs δ G δᵀ. With C the second moment, the basis is T = G^½ R
    with G^½ C G^½ = R Λ Rᵀ. The entries of z = x T are uncorrelated, and dropping some of them
    costs exactly the sum of their squares, so that no choice beats keeping the largest
    magnitudes. With G the identity it is `pca`.

    Eigenvalues of G^½ under 1e-6 of the largest are raised to that, which makes T invertible
    whatever the metric. Where the metric is zero, as with weights that were pruned to nothing, no
    basis is better than another, and the identity takes its place.

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
    roots = energy.clamp(min=0).sqrt()
    largest = roots.amax(-1, keepdim=True)
    roots = torch.where(largest > 0, roots.maximum(SMALLEST_RATIO * largest), 1)
    root = directions * roots[..., None, :] @ directions.mT
    variance, axes = pca(root @ second_moment @ root)
    return variance, root @ axes


def alternating(axes: Tensor) -> Tensor:
    """Return the columns of a basis with every other one first, then those between them.

    Of entries in descending order, either half then keeps about as many: decode steps share them
    out by halves.

    Parameters
    ----------
    axes : Tensor
        Of shape [..., d, d], with an axis in each column.
    """
    return torch.cat([axes[..., ::2], axes[..., 1::2]], dim=-1)


def metric_for(basis: Basis, weight: Tensor, fisher: Tensor | None) -> Tensor:
    """Return G, the metric of a basis: a change δ of the activations counts δ G δᵀ.

    `pca` counts the activations themselves, and `output_pca` what the weights make of them,
    G = W Wᵀ. `fisher_pca` counts, one half each, that and what the whole model predicts, for which
    the Fisher second moment F = E[g gᵀ] stands: g is the gradient of the log-likelihood of a token
    drawn from the model's own prediction, and δ F δᵀ / 2 is, to second order, the divergence of
    the predictions. The halves have equal traces, in the units of F. F alone, estimated from few
    tokens, leaves out directions that other text needs.

    Parameters
    ----------
    weight : Tensor
        Input-major weights of all readers side by side, of shape [..., d, outputs].
    fisher : Tensor or None
        F, float64 of shape [..., d, d], or of shape [..., d] where only its diagonal is known.
        `fisher_pca` needs it.

    Returns
    -------
    Tensor
        Float64 of shape [..., d, d], or [..., d] where `fisher` is the diagonal.
    """
    wide = weight.double()
    if basis not in (Basis.output_pca, Basis.fisher_pca):
        return torch.eye(wide.shape[-2], dtype=torch.float64, device=wide.device)
    diagonal = fisher is not None and fisher.ndim < wide.ndim
    gram = wide.square().sum(-1) if diagonal else wide @ wide.mT
    if basis is Basis.output_pca:
        return gram
    assert fisher is not None
    return _blend(fisher, gram, diagonal=diagonal)


def _blend(fisher: Tensor, gram: Tensor, *, diagonal: bool) -> Tensor:
    """Return both in equal shares of their traces, or W Wᵀ alone where one of them is zero."""
    fisher_trace, gram_trace = (
        (part if diagonal else part.diagonal(dim1=-2, dim2=-1)).sum(-1)[..., None]
        for part in (fisher, gram)
    )
    if not diagonal:
        fisher_trace, gram_trace = fisher_trace[..., None], gram_trace[..., None]
    blend = (fisher + gram * (fisher_trace / gram_trace)) / 2
    return torch.where((fisher_trace > 0) & (gram_trace > 0), blend, gram)


def through(x: Tensor, basis: Tensor) -> Tensor:
    """Return ``x M``, where a vector stands for the diagonal matrix."""
    return x * basis if basis.ndim == 1 else x @ basis


def undone(weight: Tensor, basis: Tensor) -> Tensor:
    """Return M⁻¹ W: the weight that gives on ``x M`` what `weight` gives on ``x``.

    The basis is inverted as it is stored, so that its rounding to a storage dtype is no error of
    the result.

    Parameters
    ----------
    weight : Tensor
        Input-major, float64 of shape [d, outputs].
    basis : Tensor
        M, float64 of shape [d, d], or its diagonal of shape [d]. An entry that is scaled by zero,
        as the weight of a norm may do, is read by nothing.
    """
    if basis.ndim == 2:
        return torch.linalg.solve(basis, weight)
    return torch.where(basis[:, None] == 0, 0, weight / basis[:, None])


def entry_costs(metric: Tensor, basis: Tensor) -> Tensor:
    """Return what a unit of each entry of ``z = x M`` costs: the diagonal of M⁻¹ G M⁻ᵀ.

    Parameters
    ----------
    metric : Tensor
        G, float64 of shape [..., d, d], or its diagonal of shape [d].
    basis : Tensor
        M, likewise.

    Returns
    -------
    Tensor
        Float64 of shape [..., d].
    """
    if basis.ndim == 1:
        costs = metric if metric.ndim == 1 else metric.diagonal()
        return torch.where(basis == 0, 0, costs / basis.square())
    inverse = torch.linalg.inv(basis)
    return (inverse @ metric * inverse).sum(-1)


def per_head(blocks: Tensor, heads: int) -> Tensor:
    """Return the maps of all KV heads as one block-diagonal matrix over all query heads.

    Attention mixes the values of several positions and never their entries, so a map of the values
    of a KV head comes out in every query head that reads it.

    Parameters
    ----------
    blocks : Tensor
        Of shape [kv_heads, head_dim, head_dim].
    heads : int
        Query heads, a multiple of the KV heads.

    Returns
    -------
    Tensor
        Of shape [heads * head_dim, heads * head_dim].
    """
    return torch.block_diag(*blocks.repeat_interleave(heads // len(blocks), dim=0))
