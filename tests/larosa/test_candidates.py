"""The basis of the attention output, found for all KV heads at once, against one head at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.counting import Counting
from tests.larosa.test_bases import metric, moment, normal
from trimtab.larosa import Basis, LaRoSA
from trimtab.larosa.bases import alternating, entry_costs, per_head, weighted_pca
from trimtab.larosa.candidates import _of_values
from trimtab.models.adapter import HeadShape

WIDTH, OUTPUTS = 6, 11  # of a head, and of the linear layer that reads them


def inputs(shape: HeadShape) -> tuple[Tensor, Tensor, Tensor]:
    """Return weights, second moments and Fisher second moments."""
    seeds = range(shape.kv_heads)
    return (
        normal(shape.heads * WIDTH, OUTPUTS, seed=7),
        torch.stack([moment(WIDTH, seed) for seed in seeds]),
        torch.stack([metric(WIDTH, seed) for seed in seeds]),
    )


def one_by_one(
    shape: HeadShape, read: Tensor, moments: Tensor, fishers: Tensor | None, settings: LaRoSA
) -> tuple[Tensor, Tensor]:
    """Return the map of every KV head's values, and what each entry of a token costs."""
    shared = shape.heads // shape.kv_heads
    maps, costs = [], []
    for index in range(shape.kv_heads):
        rows = read[index * shared * WIDTH : (index + 1) * shared * WIDTH].view(shared, WIDTH, -1)
        gram = sum(part @ part.T for part in rows) / shared
        known = None if fishers is None else fishers[index]
        cost = gram if known is None else known / 2 + gram * known.trace() / gram.trace() / 2
        axes = torch.eye(WIDTH, dtype=torch.float64)
        if settings.fold_values:
            given = {Basis.pca: torch.eye(WIDTH).double(), Basis.output_pca: gram}
            axes = alternating(weighted_pca(moments[index], given.get(settings.basis, cost))[1])
        maps.append(axes.float().double())
        costs += [entry_costs(cost, maps[-1])] * shared
    return torch.stack(maps), torch.cat(costs)


@pytest.mark.parametrize("shape", [HeadShape(6, 2, WIDTH), HeadShape(4, 4, WIDTH)])
@pytest.mark.parametrize("basis", [Basis.pca, Basis.output_pca, Basis.fisher_pca])
@pytest.mark.parametrize("folds", [True, False], ids=["folded", "as they are"])
def test_it_is_that_of_every_head_by_itself(shape, basis, folds):
    settings = LaRoSA(basis=basis, fold_values=folds)
    read, moments, fishers = inputs(shape)
    known = fishers if basis is Basis.fisher_pca else None
    found = _of_values(shape, read, moments, known, settings)
    maps, costs = one_by_one(shape, read, moments, known, settings)
    torch.testing.assert_close(found.histogram.costs, costs, rtol=1e-6, atol=1e-9)
    if folds:
        torch.testing.assert_close(found.saved["transform"].double(), maps, rtol=1e-5, atol=1e-6)
        assert torch.equal(found.matrix, per_head(found.saved["transform"].double(), shape.heads))
    else:
        assert found.saved == {}
        assert torch.equal(found.matrix, torch.ones(len(read)).double())


def test_more_heads_take_no_more_operations():
    found: list[int] = []
    for heads in (2, 8):
        shape = HeadShape(heads, heads, WIDTH)
        given = inputs(shape)
        with Counting() as counting:
            _of_values(shape, *given, LaRoSA())
        found.append(counting.operations)
    assert found[0] == found[1] > 0
