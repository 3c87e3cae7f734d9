"""Orthogonal transforms of activations, and weights that undo them. All of it in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from toolkit.errors import TrimtabError


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
