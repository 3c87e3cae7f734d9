import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.larosa.bases import (
    alternating,
    entry_costs,
    metric_for,
    pca,
    per_head,
    through,
    undone,
    weighted_pca,
)
from trimtab.larosa.settings import Basis

EXACT = {"atol": 1e-9, "rtol": 1e-9}
seeds = st.integers(0, 10_000)
widths = st.integers(1, 20)


def normal(*shape: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def moment(width: int, seed: int, rows: int = 200) -> torch.Tensor:
    x = normal(rows, width, seed=seed) * torch.linspace(0.1, 3, width)
    return x.T @ x / rows


def metric(width: int, seed: int) -> torch.Tensor:
    """Return an arbitrary symmetric positive definite matrix."""
    root = normal(width, width, seed=seed + 1) + 0.5 * torch.eye(width)
    return root @ root.T + 0.01 * torch.eye(width)


@given(widths, seeds)
@settings(max_examples=40)
def test_axes_are_orthogonal_and_diagonalise_the_moment(width, seed):
    m = moment(width, seed)
    variance, axes = pca(m)
    identity = torch.eye(width, dtype=torch.float64)
    torch.testing.assert_close(axes.T @ axes, identity, atol=1e-12, rtol=0)
    stored = axes.float().double()
    assert (stored.T @ stored - identity).norm() < 1e-6
    torch.testing.assert_close(axes.T @ m @ axes, variance.diag(), atol=1e-10, rtol=0)
    assert (variance.diff() <= 0).all()


def test_a_known_plane_is_found():
    # Energy 9 along (1, 1)/√2 and 1 along (1, -1)/√2.
    q = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64) / 2**0.5
    variance, axes = pca(q @ torch.tensor([9.0, 1.0], dtype=torch.float64).diag() @ q.T)
    torch.testing.assert_close(variance, torch.tensor([9.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(axes[:, 0].abs(), torch.full((2,), 0.5**0.5, dtype=torch.float64))


@pytest.mark.parametrize("width", [1, 2, 7, 64])
def test_both_halves_of_alternating_axes_hold_as_much(width):
    variance, axes = pca(torch.arange(width, 0, -1, dtype=torch.float64).diag())
    mixed = alternating(axes)
    order = (variance[:, None] * mixed).sum(0)
    torch.testing.assert_close(order.sort(descending=True).values, variance)
    first, second = order[: -(-width // 2)], order[-(-width // 2) :]
    assert torch.equal(first[: len(second)] - second, torch.ones_like(second))
    batch = torch.stack([axes, -axes])
    assert torch.equal(alternating(batch), torch.stack([mixed, -mixed]))


def test_axes_do_not_depend_on_the_sign_the_solver_chose():
    _, axes = pca(moment(9, seed=5))
    largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
    assert (largest > 0).all()


def test_a_stack_of_moments_is_taken_one_by_one():
    moments = torch.stack([moment(8, seed) for seed in range(3)])
    metrics = torch.stack([metric(8, seed) for seed in range(3)])
    for stacked, single in (
        (pca(moments), [pca(m) for m in moments]),
        (weighted_pca(moments, metrics), map(weighted_pca, moments, metrics)),
    ):
        for found, expected in zip(stacked, zip(*single, strict=True), strict=True):
            torch.testing.assert_close(found, torch.stack(expected), **EXACT)


@pytest.mark.parametrize("basis", [Basis.pca, Basis.output_pca, Basis.fisher_pca])
@pytest.mark.parametrize("diagonal", [False, True], ids=["whole", "diagonal"])
def test_a_stack_of_weights_has_the_metrics_and_costs_of_each(basis, diagonal):
    """Also where one has no Fisher information, or no weights."""
    weights = torch.stack([normal(8, 5, seed=seed) for seed in range(4)])
    fishers = torch.stack([metric(8, seed) for seed in range(4)])
    weights[1], fishers[2] = 0, 0
    fishers = fishers.diagonal(dim1=1, dim2=2) if diagonal else fishers
    stacked = metric_for(basis, weights, fishers)
    for index, (weight, fisher) in enumerate(zip(weights, fishers, strict=True)):
        expected = metric_for(basis, weight, fisher)
        found = stacked if basis is Basis.pca else stacked[index]
        torch.testing.assert_close(found, expected, **EXACT)
    if not diagonal:
        maps = torch.stack([normal(8, 8, seed=seed) for seed in range(10, 14)])
        costs = entry_costs(stacked.expand(4, 8, 8), maps)
        expected = [*map(entry_costs, stacked.expand(4, 8, 8), maps)]
        torch.testing.assert_close(costs, torch.stack(expected), **EXACT)


@given(widths, seeds)
@settings(max_examples=40)
def test_in_the_weighted_basis_dropping_costs_exactly_the_sum_of_squares(width, seed):
    cost = metric(width, seed)
    variance, basis = weighted_pca(moment(width, seed), cost)
    x = normal(30, width, seed=seed + 2)
    z = x @ basis
    kept = z * (normal(30, width, seed=seed + 3) > 0)
    change = x - kept @ torch.linalg.inv(basis)
    measured = torch.einsum("ti,ij,tj->t", change, cost, change)
    torch.testing.assert_close(measured, (z - kept).square().sum(-1), atol=1e-7, rtol=1e-7)
    torch.testing.assert_close(entry_costs(cost, basis), torch.ones(width).double(), **EXACT)
    # Its entries are uncorrelated, the dearest first.
    torch.testing.assert_close(basis.T @ moment(width, seed) @ basis, variance.diag(), **EXACT)
    assert (variance.diff() <= 0).all()


def test_no_other_basis_of_that_kind_holds_more_in_its_leading_entries():
    m, cost = moment(12, seed=3), metric(12, seed=3)
    variance, basis = weighted_pca(m, cost)
    for seed in range(20):
        other = basis @ torch.linalg.qr(normal(12, 12, seed=seed)).Q
        torch.testing.assert_close(entry_costs(cost, other), torch.ones(12).double(), **EXACT)
        held = (other.T @ m @ other).diagonal().sort(descending=True).values
        assert (variance.cumsum(0) >= held.cumsum(0) - 1e-9).all()


def test_with_the_identity_as_metric_it_is_the_plain_one():
    m = moment(10, seed=4)
    for found, expected in zip(weighted_pca(m, torch.eye(10).double()), pca(m), strict=True):
        torch.testing.assert_close(found, expected, **EXACT)


def test_directions_that_cost_nothing_leave_the_basis_invertible():
    weight = normal(6, 4, seed=0)  # two of six directions reach no output
    x = normal(50, 6, seed=1)
    _, basis = weighted_pca(x.T @ x, metric_for(Basis.output_pca, weight, None))
    assert torch.linalg.cond(basis) < 1.1e6
    identity = torch.linalg.solve(basis, basis)
    torch.testing.assert_close(identity, torch.eye(6, dtype=torch.float64), atol=1e-8, rtol=0)
    torch.testing.assert_close(through(x, basis) @ undone(weight, basis), x @ weight)


def test_a_metric_measures_what_its_basis_is_named_for():
    weight, change = normal(7, 11, seed=0), normal(20, 7, seed=1)
    outputs = (change @ weight).square().sum(-1)
    found = metric_for(Basis.output_pca, weight, None)
    torch.testing.assert_close(torch.einsum("ti,ij,tj->t", change, found, change), outputs)
    found = metric_for(Basis.pca, weight, None)
    measured = torch.einsum("ti,ij,tj->t", change, found, change)
    torch.testing.assert_close(measured, change.square().sum(-1))


@given(st.integers(1, 12), st.integers(1, 12), seeds, st.floats(-4, 4))
@settings(max_examples=40)
def test_the_blend_is_half_fisher_half_output_in_the_units_of_fisher(width, outputs, seed, power):
    weight, fisher = normal(width, outputs, seed=seed), metric(width, seed)
    found = metric_for(Basis.fisher_pca, weight, fisher)
    rest = found - fisher / 2
    gram = weight @ weight.T
    torch.testing.assert_close(rest.trace(), fisher.trace() / 2)
    torch.testing.assert_close(rest * gram.trace(), gram * rest.trace(), **EXACT)
    scaled = metric_for(Basis.fisher_pca, weight * 10**power, fisher)
    torch.testing.assert_close(scaled, found, **EXACT)
    diagonal = metric_for(Basis.fisher_pca, weight, fisher.diagonal())
    torch.testing.assert_close(diagonal, found.diagonal(), **EXACT)


@pytest.mark.parametrize("storage", [torch.float64, torch.float32, torch.bfloat16])
def test_absorbing_undoes_the_basis_as_stored(storage):
    # Also where storage rounding has cost the basis its orthogonality.
    stored = pca(moment(16, seed=2))[1].to(storage).double()
    weight, x = normal(16, 7, seed=3), normal(5, 16, seed=4)
    torch.testing.assert_close(through(x, stored) @ undone(weight, stored), x @ weight, **EXACT)
    scale = normal(16, seed=5).to(storage).double()
    torch.testing.assert_close(through(x, scale) @ undone(weight, scale), x @ weight, **EXACT)


def test_an_entry_scaled_by_zero_is_read_by_nothing_and_costs_nothing():
    scale = torch.tensor([2.0, 0.0, -0.5], dtype=torch.float64)
    weight, x = normal(3, 4, seed=0), normal(5, 3, seed=1)
    read = x.clone()
    read[:, 1] = 0
    torch.testing.assert_close(through(x, scale) @ undone(weight, scale), read @ weight)
    costs = entry_costs(metric(3, seed=2), scale)
    assert costs[1] == 0
    assert (costs[[0, 2]] > 0).all()


@given(st.integers(1, 10), seeds)
@settings(max_examples=30)
def test_an_entrys_cost_is_that_of_moving_it_alone(width, seed):
    cost, matrix = metric(width, seed), metric(width, seed + 7)
    for basis, inverse in (
        (matrix, torch.linalg.inv(matrix)),
        (matrix[0] + 1e-3, (1 / (matrix[0] + 1e-3)).diag()),
    ):
        expected = torch.stack([row @ cost @ row for row in inverse])
        torch.testing.assert_close(entry_costs(cost, basis), expected, rtol=1e-6, atol=1e-9)
    scale = matrix[0] + 1e-3
    by_diagonal = entry_costs(cost.diagonal(), scale)
    torch.testing.assert_close(by_diagonal, entry_costs(cost, scale))


@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 2), (4, 4), (3, 1)])
def test_a_map_of_every_kv_heads_values_comes_out_of_each_head_that_reads_it(heads, kv_heads):
    values, blocks = normal(9, kv_heads, 5, seed=0), normal(kv_heads, 5, 5, seed=1)
    attention = normal(heads, 9, 9, seed=2).softmax(-1)
    reads = torch.arange(heads) // (heads // kv_heads)

    def attended(values: torch.Tensor) -> torch.Tensor:
        return torch.einsum("hqt,thd->qhd", attention, values[:, reads]).flatten(1)

    mapped = torch.einsum("tkd,kde->tke", values, blocks)
    torch.testing.assert_close(attended(values) @ per_head(blocks, heads), attended(mapped))
