from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from trimtab.errors import MisfitError
from trimtab.larosa import allocation
from trimtab.larosa.allocation import Choice, Option, alpha_grid, steepest, uniform

SITES = ("h1", "h2", "h3", "h4")


def option(index: int, basis: str, costs: list[float], weight: int, transform: int = 0) -> Option:
    shares = torch.arange(len(costs), dtype=torch.float64) / len(costs)
    curve = torch.tensor(costs, dtype=torch.float64)
    site = SITES[index % 4]
    return Option(site, basis, shares, 2 * shares, curve, weight, transform)


@st.composite
def convex(draw: st.DrawFn, points: int = 4) -> list[float]:
    """Return costs that rise from 0 ever faster."""
    steps = draw(st.lists(st.floats(0.01, 10), min_size=points - 1, max_size=points - 1))
    return [0.0, *np.cumsum(sorted(steps)).tolist()]


@st.composite
def plain_sites(draw: st.DrawFn) -> list[list[Option]]:
    count = draw(st.integers(1, 4))
    weights = draw(st.lists(st.integers(1, 50), min_size=count, max_size=count))
    return [[option(n, "plain", draw(convex()), 100 * w)] for n, w in enumerate(weights)]


@st.composite
def sites_with_a_choice(draw: st.DrawFn) -> list[list[Option]]:
    sites = draw(plain_sites())
    for index, options in enumerate(sites):
        weight = options[0].weight_bytes
        transform = draw(st.integers(1, weight // 4))
        options.append(option(index, "transform", draw(convex()), weight, transform))
    return sites


def saved(choices: list[Choice]) -> float:
    return sum(choice.saved for choice in choices)


def spent(choices: list[Choice]) -> float:
    return sum(choice.cost for choice in choices)


def attainable(sites: list[list[Option]]) -> float:
    return sum(max(part.at(float(part.sparsities[-1])).saved for part in row) for row in sites)


def combinations(sites: list[list[Option]]) -> list[list[Choice]]:
    """Return every way to take one measured point of one option at each site."""
    rows = [[part.at(float(share)) for part in row for share in part.sparsities] for row in sites]
    return [list(combination) for combination in product(*rows)]


@given(plain_sites(), st.floats(0, 1))
@settings(max_examples=60)
def test_with_one_basis_the_target_is_hit_at_the_least_cost_there_is(sites, share):
    target = share * attainable(sites)
    chosen = steepest(sites, target)
    assert saved(chosen) == pytest.approx(target, rel=1e-9, abs=1e-6)
    # A linear programme over the segments of all curves.
    prices, limits = [], []
    for (only,) in sites:
        size = (only.sparsities.diff() * only.weight_bytes).tolist()
        limits += [(0, bytes_) for bytes_ in size]
        prices += (only.costs.diff() / torch.tensor(size)).tolist()
    best = linprog(prices, A_ub=[[-1.0] * len(prices)], b_ub=[-target], bounds=limits)
    assert spent(chosen) == pytest.approx(best.fun, rel=1e-6, abs=1e-6)


@given(sites_with_a_choice(), st.floats(0, 1))
@settings(max_examples=40)
def test_with_a_choice_of_basis_nothing_that_saves_as_much_costs_less(sites, share):
    chosen = steepest(sites, share * attainable(sites))
    reached = saved(chosen) - 1e-6
    costs = [spent(other) for other in combinations(sites) if saved(other) >= reached]
    assert costs
    assert spent(chosen) <= min(costs) + 1e-9 + 1e-6 * min(costs)


@given(sites_with_a_choice(), st.floats(0, 1))
@settings(max_examples=60)
def test_the_target_is_exceeded_by_less_than_one_step_to_another_basis(sites, share):
    target = share * attainable(sites)
    chosen = steepest(sites, target)
    excess = saved(chosen) - target
    assert excess >= -1e-6
    if excess > 1e-6:
        measured = {float(part) for options in sites for part in options[0].sparsities}
        steps = [choice.saved for choice in chosen if choice.sparsity in measured]
        assert excess <= max(steps) * (1 + 1e-9)


@given(sites_with_a_choice(), st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=60)
def test_a_larger_target_never_costs_less(sites, first, second):
    low, high = (share * attainable(sites) for share in sorted((first, second)))
    assert spent(steepest(sites, low)) <= spent(steepest(sites, high)) + 1e-9
    assert saved(steepest(sites, low)) <= saved(steepest(sites, high)) + 1e-6


@given(sites_with_a_choice())
@settings(max_examples=20)
def test_a_target_of_nothing_drops_nothing(sites):
    for choice in steepest(sites, 0.0):
        assert (choice.option.basis, choice.sparsity, choice.cost) == ("plain", 0, 0)
        assert choice.threshold == 0


@pytest.mark.parametrize(
    ("transform_bytes", "target", "basis"),
    [
        (10, 0.2, "plain"),  # what has to be dropped costs nothing yet
        (10, 0.3, "plain"),
        (10, 0.6, "transform"),
        (300, 0.6, "plain"),
        (700, 0.6, "plain"),  # the transform reads more than dropping in it ever saves
    ],
)
def test_a_transform_is_chosen_exactly_where_it_pays(transform_bytes, target, basis):
    """Costs max(0, p - 1/4)² without it and p²/4 with it, over 1000 bytes of weights."""
    shares = [n / 40 for n in range(40)]
    plain = option(0, "plain", [max(0, p - 0.25) ** 2 for p in shares], 1000)
    rotated = option(0, "transform", [p**2 / 4 for p in shares], 1000, transform_bytes)
    (choice,) = steepest([[plain, rotated]], 1000 * target)
    assert choice.option.basis == basis
    assert choice.saved >= 1000 * target - 1e-9
    expected = plain if basis == "plain" else rotated
    needed = (choice.saved + expected.transform_bytes) / 1000
    for other in (plain, rotated):
        share = (choice.saved + other.transform_bytes) / 1000
        if share <= shares[-1]:
            assert choice.cost <= other.at(share).cost + 1e-9
    assert choice.sparsity == pytest.approx(needed)


def test_transforms_everywhere_are_earned_back_at_a_target_of_nothing():
    sites = [[option(n, "transform", [0.0, 1.0, 3.0, 9.0], 1000, 100)] for n in range(2)]
    chosen = steepest(sites, 0.0)
    assert saved(chosen) == pytest.approx(0)
    assert sum(choice.sparsity for choice in chosen) == pytest.approx(0.2)


@given(sites_with_a_choice(), st.floats(0, 0.5))
@settings(max_examples=40)
def test_uniform_is_one_sparsity_at_which_all_together_save_the_target(sites, share):
    only = [options[1] for options in sites]
    target = share * sum(part.weight_bytes for part in only)
    chosen = uniform(only, target)
    assert len({choice.sparsity for choice in chosen}) == 1
    assert saved(chosen) == pytest.approx(target, abs=1e-6)
    assert [choice.option for choice in chosen] == only


@given(st.lists(convex(40), min_size=4, max_size=8), st.floats(0.1, 0.7), st.data())
@settings(max_examples=30)
def test_every_alpha_saves_the_same_and_the_best_is_no_worse_than_uniform(curves, share, data):
    only = [
        option(n, "transform" if n % 2 == 0 else "plain", curve, 4000, 200 * (n % 2 == 0))
        for n, curve in enumerate(curves)
    ]
    target = share * 4000 * len(only)
    favoured = ["h1", "h3"]
    best = alpha_grid(only, target, favoured)
    assert saved(best) == pytest.approx(target, abs=1e-3)
    assert spent(best) <= spent(uniform(only, target)) * (1 + 1e-9)
    alpha = data.draw(st.sampled_from(list(allocation.ALPHAS)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(allocation, "ALPHAS", [alpha])
        single = alpha_grid(only, target, favoured)
    assert saved(single) == pytest.approx(target, abs=1e-3)
    assert spent(best) <= spent(single) * (1 + 1e-9)
    for names in (favoured, ["h2", "h4"]):
        assert len({c.sparsity for c in single if c.option.site in names}) == 1


@pytest.mark.parametrize("divide", ["steepest", "uniform", "alpha"])
def test_what_cannot_be_saved_is_refused_with_what_can(divide):
    sites = [option(n, "plain", [0.0, 1.0, 3.0, 9.0], 1000, 50) for n in range(4)]
    message = r"at most 0\.700 of the block weights' bytes can be saved, and 0\.900 are asked for"
    with pytest.raises(MisfitError, match=message):
        if divide == "steepest":
            steepest([[site] for site in sites], 3600)
        elif divide == "uniform":
            uniform(sites, 3600)
        else:
            alpha_grid(sites, 3600, ["h1", "h3"])


def test_a_share_that_no_site_can_drop_is_no_reason_to_give_the_grid_up():
    """Some α ask for more at a site than was measured: they are left out, the others serve."""
    shares = torch.linspace(0, 0.95, 20, dtype=torch.float64)
    sites = [
        Option(name, "plain", shares, shares, shares.square(), size, 0)
        for name, size in (("h1", 3000), ("h2", 1000), ("h3", 3000), ("h4", 1000))
    ]
    found = alpha_grid(sites, 0.92 * 8000, ("h1", "h3"))
    assert sum(choice.saved for choice in found) == pytest.approx(0.92 * 8000)
