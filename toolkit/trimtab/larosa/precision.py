"""How a transform is stored, and the matrix that it is then."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from trimtab.larosa.bases import SMALLEST_RATIO
from trimtab.larosa.settings import Precision

LARGEST = 127


def stored_transform(transform: Tensor, weight: Tensor, precision: Precision) -> dict[str, Tensor]:
    """Return a transform as its artifact holds it.

    The linear layers absorb the inverse of what is stored, so that coarse storage is exact too. It
    makes the basis a little less than the best one, and the transform several times cheaper to
    read.

    Parameters
    ----------
    transform : Tensor
        T of what a norm makes before its weight, float64 of shape [d, d].
    weight : Tensor
        What the norm multiplies by before the transform is applied, float64 of shape [d].

    Returns
    -------
    dict
        ``norm_weight`` (float32 [d]) and ``transform`` ([d, d]): float32 for `Precision.model`,
        which applying casts to the model's dtype, else int8 with ``transform_scale`` (float32 [d],
        one factor a column).
    """
    # int8 would round the row of a vanishing weight away, so its own norm takes its place.
    vanishing = weight.abs() <= SMALLEST_RATIO * weight.abs().max()
    weight = torch.where(vanishing, transform.norm(dim=1), weight).float()
    after = transform / weight.double()[:, None]
    if precision is Precision.model:
        return {"norm_weight": weight, "transform": after.float()}
    scale = (after.abs().amax(0) / LARGEST).float()
    rounded = (after / scale.double()).round().clamp(-LARGEST, LARGEST)
    return {
        "norm_weight": weight,
        "transform": rounded.to(torch.int8),
        "transform_scale": scale,
    }


def transform_matrix(stored: Mapping[str, Tensor]) -> Tensor:
    """Return the matrix that a norm and its transform multiply by, float64 of shape [d, d].

    Parameters
    ----------
    stored : mapping
        As `stored_transform` returns it, in the dtypes that it runs in.
    """
    matrix = stored["norm_weight"].double()[:, None] * stored["transform"].double()
    scale = stored.get("transform_scale")
    return matrix if scale is None else matrix * scale.double()
