import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.errors import TrimtabError
from toolkit.larosa.rotation import absorb_inverse, output_pca, pca


def moment(width: int, seed: int, rows: int = 200) -> torch.Tensor:
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)).double()
    x = x * torch.linspace(0.1, 3, width)
    return x.T @ x / rows


@given(st.integers(1, 24), st.integers(0, 1000))
@settings(max_examples=40)
def test_axes_are_orthogonal_and_diagonalise_the_moment(width, seed):
    m = moment(width, seed)
    variance, axes = pca(m)
    identity = torch.eye(width, dtype=torch.float64)
    torch.testing.assert_close(axes.T @ axes, identity, atol=1e-12, rtol=0)
    torch.testing.assert_close(axes.T @ m @ axes, variance.diag(), atol=1e-10, rtol=0)
    assert (variance.diff() <= 0).all()


def test_a_known_plane_is_found():
    # Energy 9 along (1, 1)/√2 and 1 along (1, -1)/√2.
    q = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64) / 2**0.5
    variance, axes = pca(q @ torch.tensor([9.0, 1.0], dtype=torch.float64).diag() @ q.T)
    torch.testing.assert_close(variance, torch.tensor([9.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(axes[:, 0].abs(), torch.full((2,), 0.5**0.5, dtype=torch.float64))


def test_leading_axes_hold_more_energy_than_any_other_rotation():
    m = moment(12, seed=3)
    variance, _ = pca(m)
    for seed in range(20):
        random = torch.randn(12, 12, generator=torch.Generator().manual_seed(seed)).double()
        other = torch.linalg.qr(random).Q
        held = (other.T @ m @ other).diagonal().sort(descending=True).values
        assert (variance.cumsum(0) >= held.cumsum(0) - 1e-9).all()


def test_axes_do_not_depend_on_the_sign_the_solver_chose():
    _, axes = pca(moment(9, seed=5))
    largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
    assert (largest > 0).all()


def test_in_the_output_basis_dropping_costs_exactly_the_sum_of_squares():
    weight = torch.randn(12, 20, generator=torch.Generator().manual_seed(0)).double()
    x = torch.randn(300, 12, generator=torch.Generator().manual_seed(1)).double()
    x = x * torch.logspace(0, -2, 12)
    variance, transform = output_pca(x.T @ x / len(x), weight)
    z = x @ transform
    torch.testing.assert_close(z.square().mean(0), variance)
    folded = absorb_inverse(weight, transform)
    torch.testing.assert_close(folded @ folded.T, torch.eye(12, dtype=torch.float64))
    kept = z * (torch.rand(z.shape, generator=torch.Generator().manual_seed(2)) > 0.5)
    error = (kept @ folded - x @ weight).square().sum(-1)
    torch.testing.assert_close(error, (z - kept).square().sum(-1))


def test_the_output_basis_is_exact_also_where_weights_ignore_a_direction():
    weight = torch.randn(6, 4).double()  # two of six directions reach no output
    x = torch.randn(50, 6).double()
    _, transform = output_pca(x.T @ x, weight)
    torch.testing.assert_close(x @ transform @ absorb_inverse(weight, transform), x @ weight)


def test_a_moment_that_is_not_finite_is_refused():
    m = moment(4, seed=0)
    m[1, 1] = torch.inf
    with pytest.raises(TrimtabError, match="not finite"):
        pca(m)


@pytest.mark.parametrize("storage", [torch.float64, torch.float32, torch.bfloat16])
def test_absorbing_undoes_the_transform_as_stored(storage):
    # Also where storage rounding has cost the transform its orthogonality.
    _, axes = pca(moment(16, seed=2))
    stored = axes.to(storage)
    weight = torch.randn(16, 7, dtype=torch.float64)
    x = torch.randn(5, 16, dtype=torch.float64)
    result = x @ stored.double() @ absorb_inverse(weight, stored)
    torch.testing.assert_close(result, x @ weight, atol=1e-12, rtol=1e-12)


def test_absorbing_keeps_the_weights_dtype():
    assert absorb_inverse(torch.randn(4, 3).bfloat16(), torch.eye(4)).dtype == torch.bfloat16
