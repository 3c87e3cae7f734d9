"""How a transform is stored, and the matrix that it then is."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from trimtab.larosa.settings import Precision

LARGEST = 127
LEAST_GAIN = 1e-6


def stored_transform(transform: Tensor, gain: Tensor, precision: Precision) -> dict[str, Tensor]:
    """Return a transform as its artifact holds it.

    The weights behind it absorb the inverse of what is stored, so coarse storage costs no
    exactness: it makes the basis a little less than the best one, and the transform several times
    cheaper to read.

    Parameters
    ----------
    transform : Tensor
        T of what a norm makes before its gain, float64 of shape [d, d].
    gain : Tensor
        What the norm multiplies by before the transform is applied, float64 of shape [d].

    Returns
    -------
    dict
        ``gain`` (float32 [d]) and ``transform`` ([d, d]): float32 for `Precision.model`, which
        applying casts to the model's dtype, else int8 with ``scale`` (float32 [d], of its columns).
    """
    # Where the gain is as good as zero, that of the row: int8 would round such a row away.
    vanishing = gain.abs() <= LEAST_GAIN * gain.abs().max()
    gain = torch.where(vanishing, transform.norm(dim=1), gain).float()
    behind = transform / gain.double()[:, None]
    if precision is Precision.model:
        return {"gain": gain, "transform": behind.float()}
    scale = (behind.abs().amax(0) / LARGEST).float()
    rounded = (behind / scale.double()).round().clamp(-LARGEST, LARGEST)
    return {"gain": gain, "transform": rounded.to(torch.int8), "scale": scale}


def transform_matrix(stored: Mapping[str, Tensor]) -> Tensor:
    """Return the matrix that norm and transform multiply by, float64 of shape [d, d].

    Parameters
    ----------
    stored : mapping
        As `stored_transform` returns it, in whatever dtype it runs in.
    """
    matrix = stored["gain"].double()[:, None] * stored["transform"].double()
    return matrix * stored["scale"].double() if "scale" in stored else matrix
