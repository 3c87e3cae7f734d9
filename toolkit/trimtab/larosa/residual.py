"""Rotations of the residual stream: which layers share one, and what it is."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from trimtab.larosa.bases import alternating, pca
from trimtab.larosa.settings import RotationScope


def rotation_group_size(scope: RotationScope, layers: int, group: int) -> int:
    """Return how many layers share a rotation; 0 where the stream is not rotated."""
    return {
        RotationScope.none: 0,
        RotationScope.model: layers,
        RotationScope.group: min(group, layers),
    }.get(scope, 1)


def group_start(rotation_group: int, layer: int) -> int:
    """Return the first of the layers that share a rotation with this one."""
    return layer // rotation_group * rotation_group


def basis_changes(rotation_group: int, layers: int) -> int:
    """Return how many d × d products change the stream's basis in one forward pass.

    One leads into each rotation, from the one before it or from the embeddings, and one out of the
    last. Embeddings, final norm and head stay as they are, tied or not.

    Parameters
    ----------
    rotation_group : int
        As in `Plan`.
    layers : int
        Decoder layers of the model.
    """
    return -(-layers // rotation_group) + 1 if rotation_group else 0


def residual_rotation(moments: Iterable[Tensor]) -> Tensor:
    """Return the rotation for several sites: the principal axes of their summed moments.

    Each moment is divided by its trace first, so that every site counts the same. The moments are
    those of the normalised stream before the norms' weights, which a rotation cannot pass: these
    go into the linear layers. LaRoSA (section 3.2) takes the attention's moments alone, which
    costs the MLP dearly; here both sites of a layer are in the sum.

    Parameters
    ----------
    moments : iterable of Tensor
        Float64 of shape [d, d].

    Returns
    -------
    Tensor
        Q, orthogonal, float64 of shape [d, d], its columns `alternating`.
    """
    total: Tensor | int = 0
    for moment in moments:
        trace = moment.trace()
        total = total + (moment / trace if trace > 0 else moment)
    assert isinstance(total, Tensor)
    return alternating(pca(total)[1])
