"""Transforms of activations, and weights that undo them. All of it in float64."""

from __future__ import annotations

from enum import StrEnum

import torch
from torch import Tensor

from toolkit.errors import TrimtabError

LEAST_GAIN = 1e-6


class Basis(StrEnum):
    """The basis in which activations are dropped at the sites behind a norm (h1 and h3)."""

    output_pca = "output_pca"
    pca = "pca"
    none = "none"


def transform_for(basis: Basis, second_moment: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the variances along a basis' axes and its transform; see `pca` and `output_pca`."""
    if basis is Basis.pca:
        return pca(second_moment)
    if basis is Basis.output_pca:
        return output_pca(second_moment, weight)
    raise ValueError(f"the basis {basis} has no transform")


def pca(second_moment: Tensor) -> tuple[Tensor, Tensor]:
    """Return the principal axes of activations, by descending variance.

    With X the calibration activations [tokens, d] and XᵀX = Q Λ Qᵀ, the rotated activations
    X Q are uncorrelated and hold as much of their energy in as few entries as any rotation
    allows (LaRoSA, section 3.2). The moment is not centred, so that the rotation is linear.
    Each axis points the way that makes its entry of largest magnitude positive.

    Parameters
    ----------
    second_moment : Tensor
        XᵀX or its mean, symmetric, float64 of shape [d, d].

    Returns
    -------
    variance : Tensor
        Λ, float64 of shape [d], descending.
    axes : Tensor
        Orthogonal Q, float64 of shape [d, d], an axis in each column.

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
    largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
    return variance, axes * largest.sign()


def output_pca(second_moment: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the basis whose entries cost what their squares say, by descending cost.

    With X the activations, W the weights that read them and G = W Wᵀ, the basis is T = G^½ R
    with G^½ XᵀX G^½ = R Λ Rᵀ. On Z = X T the weights become T⁻¹ W, whose rows are orthonormal:
    dropping entries of Z changes the output by exactly the root of the sum of their squares,
    so keeping the largest magnitudes is the best there is in this basis. PCA alone orders the
    axes by how large the activations are along them, not by what the weights make of it.

    Directions that the weights all but ignore (their gain under 1e-6 of the largest) are kept
    at that floor, which makes T invertible whatever the weights.

    Parameters
    ----------
    second_moment : Tensor
        XᵀX or its mean, symmetric, float64 of shape [d, d].
    weight : Tensor
        Input-major weights of all readers side by side, of shape [d, outputs].

    Returns
    -------
    variance : Tensor
        Λ, float64 of shape [d], descending.
    transform : Tensor
        T, float64 of shape [d, d].
    """
    wide = weight.double()
    energy, directions = torch.linalg.eigh(wide @ wide.T)
    gain = energy.clamp(min=0).sqrt()
    root = directions * gain.clamp(min=LEAST_GAIN * gain.max()) @ directions.T
    variance, axes = pca(root @ second_moment @ root)
    return variance, root @ axes


def absorb_inverse(weight: Tensor, transform: Tensor) -> Tensor:
    """Return the weight that gives on ``x @ transform`` what `weight` gives on ``x``.

    For y = x W the new weight is T⁻¹ W. The inverse is that of the transform as stored, so its
    rounding to a storage dtype is not an error of the result, only a slight departure of T from
    orthogonality.

    Parameters
    ----------
    weight : Tensor
        Input-major, of shape [d, outputs].
    transform : Tensor
        T, invertible, of shape [d, d].

    Returns
    -------
    Tensor
        Of the shape and dtype of `weight`; computed in float64.
    """
    solved = torch.linalg.solve(transform.double(), weight.double())
    return solved.to(weight.dtype)
