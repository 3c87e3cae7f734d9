import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.larosa.bases import undone
from trimtab.larosa.precision import stored_transform, transform_matrix
from trimtab.larosa.settings import Precision
from trimtab_kernels.reference import int8_linear


def drawn(width: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a transform and the weight of the norm before it."""
    generator = torch.Generator().manual_seed(seed)
    transform = torch.randn(width, width, generator=generator, dtype=torch.float64)
    weight = 1 + 0.3 * torch.randn(width, generator=generator, dtype=torch.float64)
    return transform + 3 * torch.eye(width), weight


@pytest.mark.parametrize("precision", list(Precision))
@given(st.integers(1, 24), st.integers(0, 10_000))
@settings(max_examples=30)
def test_what_is_stored_is_exactly_undone(precision, width, seed):
    transform, weight = drawn(width, seed)
    matrix = transform_matrix(stored_transform(transform, weight, precision))
    x, linear = (drawn(width, seed + n)[0] for n in (1, 2))
    bound = 1e-13 * float(torch.linalg.cond(matrix)) * float(x.norm() * linear.norm())
    assert (x @ matrix @ undone(linear, matrix) - x @ linear).abs().max() < bound


@given(st.integers(1, 24), st.integers(0, 10_000), st.floats(-20, 20))
@settings(max_examples=40)
def test_int8_is_at_most_half_a_step_away(width, seed, exponent):
    transform, weight = drawn(width, seed)
    transform = transform * 2.0**exponent
    stored = stored_transform(transform, weight, Precision.int8)
    assert stored["transform"].dtype == torch.int8
    assert (stored["transform"].int().abs().amax(0) == 127).all()
    after = transform / stored["norm_weight"].double()[:, None]
    found = transform_matrix(stored) / stored["norm_weight"].double()[:, None]
    half_a_step = after.abs().amax(0) / 254
    assert ((found - after).abs() <= half_a_step * (1 + 1e-4)).all()


def test_the_models_own_precision_is_that_of_float32():
    transform, weight = drawn(16, seed=0)
    stored = stored_transform(transform, weight, Precision.model)
    assert set(stored) == {"norm_weight", "transform"}
    torch.testing.assert_close(transform_matrix(stored), transform, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("precision", list(Precision))
def test_the_matrix_is_what_norm_and_product_multiply_by(precision):
    transform, weight = drawn(16, seed=1)
    stored = stored_transform(transform, weight, precision)
    x = drawn(16, seed=2)[0]
    normalised = x * stored["norm_weight"]
    if precision is Precision.int8:
        found = int8_linear(normalised, stored["transform"], stored["transform_scale"])
    else:
        found = normalised @ stored["transform"].double()
    torch.testing.assert_close(found, x @ transform_matrix(stored))


@pytest.mark.parametrize("precision", list(Precision))
def test_an_entry_of_vanishing_weight_keeps_its_place_in_the_transform_however_small(precision):
    """A row far below the others must not round to zero: the transform would be singular."""
    transform, weight = drawn(8, seed=3)
    weight[2], weight[5] = 0.0, 1e-12
    transform[[2, 5]] *= 1e-6
    stored = stored_transform(transform, weight, precision)
    matrix = transform_matrix(stored)
    bound = 0.05 if precision is Precision.int8 else 1e-6
    rows = transform.norm(dim=1)
    assert ((matrix - transform).norm(dim=1) < bound * rows).all()
    identity = torch.eye(8, dtype=torch.float64)
    torch.testing.assert_close(matrix @ undone(identity, matrix), identity, atol=1e-8, rtol=0)
