"""Rotations of the residual stream: who shares them, and which they are."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from trimtab.larosa.bases import pca
from trimtab.larosa.settings import RotationScope


def span_of(share: RotationScope, layers: int, group: int) -> int:
    """Return how many layers share a rotation; 0 where there is none."""
    return {
        RotationScope.none: 0,
        RotationScope.model: layers,
        RotationScope.group: min(group, layers),
    }.get(share, 1)


def adapters(span: int, layers: int) -> int:
    """Return how many d × d products change the stream's basis in one forward pass.

    One into each rotation, from the one before it or from the embeddings, and one out of the last
    for the final norm: embeddings, head and final norm stay as they are, tied or not.
    """
    return -(-layers // span) + 1 if span else 0


def residual_rotation(moments: Iterable[Tensor]) -> Tensor:
    """Return the rotation for several sites: the principal axes of their summed moments.

    Each moment is divided by its trace first, so that every site counts the same. The moments are
    those of the normalised stream before the norms' gains, which a rotation cannot pass; the
    gains go into the weights (LaRoSA, section 3.2, with both sites of a layer in the sum: taking
    the attention's alone costs the MLP dearly).

    Parameters
    ----------
    moments : iterable of Tensor
        Float64 of shape [d, d].

    Returns
    -------
    Tensor
        Q, orthogonal, float64 of shape [d, d].
    """
    total: Tensor | int = 0
    for moment in moments:
        total = total + moment / moment.trace()
    assert isinstance(total, Tensor)
    return pca(total)[1]
