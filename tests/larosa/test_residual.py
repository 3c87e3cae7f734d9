import pytest
import torch

from trimtab.larosa.bases import alternating, pca
from trimtab.larosa.residual import (
    basis_changes,
    group_start,
    residual_rotation,
    rotation_group_size,
)
from trimtab.larosa.settings import RotationScope


@pytest.mark.parametrize(
    ("scope", "group", "size", "products"),
    [
        (RotationScope.none, 5, 0, 0),
        (RotationScope.model, 5, 30, 2),
        (RotationScope.group, 5, 5, 7),
        (RotationScope.group, 7, 7, 6),  # four of seven layers, one of two
        (RotationScope.group, 100, 30, 2),
        (RotationScope.layer, 5, 1, 31),
        (RotationScope.site, 5, 1, 31),
    ],
)
def test_one_product_leads_into_each_rotation_and_one_out_of_the_last(scope, group, size, products):
    assert rotation_group_size(scope, 30, group) == size
    assert basis_changes(size, 30) == products
    if size:
        starts = {group_start(size, layer) for layer in range(30)}
        assert len(starts) == products - 1
        assert all(start % size == 0 for start in starts)


def test_every_site_counts_the_same_however_large_its_activations():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(3, 50, 8, generator=generator, dtype=torch.float64)
    moments = [x.T @ x for x in rows]
    rotation = residual_rotation(moments)
    identity = torch.eye(8, dtype=torch.float64)
    torch.testing.assert_close(rotation.T @ rotation, identity, atol=1e-12, rtol=0)
    torch.testing.assert_close(residual_rotation([moments[0], 1e6 * moments[1], moments[2]]),
                               rotation)  # fmt: skip
    summed = sum(moment / moment.trace() for moment in moments)
    turned = rotation.T @ summed @ rotation
    torch.testing.assert_close(turned, turned.diagonal().diag(), atol=1e-12, rtol=0)
    alone = residual_rotation(iter(moments[:1]))
    torch.testing.assert_close(alone, alternating(pca(moments[0])[1]))


def test_a_site_whose_activations_are_all_zero_counts_for_nothing():
    rows = torch.randn(50, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moment = rows.T @ rows
    torch.testing.assert_close(
        residual_rotation([moment, torch.zeros_like(moment)]), residual_rotation([moment])
    )
