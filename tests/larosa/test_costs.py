"""What calibration says dropping costs, against dropping; and what the allocations make of it."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from tests.models.contract import draw
from trimtab.corpus import Split
from trimtab.errors import MisfitError
from trimtab.larosa import Allocation, Basis, Count, LaRoSA, Precision, Transforms
from trimtab.larosa.calibrate import SHARES
from trimtab.larosa.plan import Plan
from trimtab.larosa.precision import transform_matrix
from trimtab.models.sources import DType
from trimtab.windows import token_windows

ALLOCATIONS = [one for one in Allocation if one is not Allocation.auto]
SMALL = {"tokens": 512, "window": 64, "probe_tokens": 128}


@pytest.fixture(scope="module")
def loaded():
    return draw("tiny-llama", DType.float64, tied=True)


@pytest.mark.parametrize("precision", list(Precision))
def test_in_the_output_basis_a_cost_is_the_squared_error_of_the_outputs(
    loaded, corpus, tmp_path, precision
):
    method = LaRoSA(
        basis=Basis.output_pca, transforms=Transforms.all, allocation=Allocation.uniform,
        precision=precision, **SMALL,
    )  # fmt: skip
    method.calibrate(loaded.model, loaded.tokenizer, corpus, tmp_path)
    found = load_file(tmp_path / "costs" / "001.safetensors")
    prefix = "h3.transform.saved."
    stored = {key.removeprefix(prefix): part for key, part in found.items() if prefix in key}
    layer = loaded.model.model.layers[1]
    seen = []
    norm = layer.post_attention_layernorm
    handle = norm.register_forward_hook(lambda module, inputs, output: seen.append(output))
    documents = corpus.documents(Split.calibration)
    loaded.model(token_windows(documents, loaded.tokenizer, 8, 64)[:2])
    handle.remove()
    # The first token of a text drops nothing.
    x = (seen[0] / norm.weight)[:, 1:].flatten(0, 1)
    matrix = transform_matrix(stored)
    z = x @ matrix
    both = torch.cat([layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight]).T
    weight = torch.linalg.inv(matrix) @ (norm.weight[:, None] * both)
    # The metric's entries are independent only where storage has not rounded the basis.
    bound = 1e-3 if precision is Precision.model else 5e-2
    for index in (4, 12, 20, 30, 36):
        dropped = z * (z.abs() < found["h3.transform.thresholds"][index])
        assert (dropped != 0).double().mean() == pytest.approx(float(SHARES[index]), abs=0.01)
        error = (dropped @ weight).square().sum(-1).mean()
        assert found["h3.transform.costs"][index] == pytest.approx(float(error), rel=bound)
    assert found["h3.transform.thresholds"][0] == found["h3.transform.costs"][0] == 0


def test_fisher_costs_are_in_one_unit_and_the_steepest_allocation_finds_the_least(
    loaded, corpus, tmp_path
):
    """All on one set of sums, which no allocation changes."""
    plans, costs = {}, {}
    for allocation in ALLOCATIONS:
        method = LaRoSA(
            sparsity=0.5, count=Count.bytes, transforms=Transforms.all, allocation=allocation,
            **SMALL,
        )  # fmt: skip
        # Uniform alone would do without gradients here, were it not for the basis.
        artifact = method.calibrate(loaded.model, loaded.tokenizer, corpus, tmp_path)
        plans[allocation] = Plan.from_json(artifact.parameters["plan"])
        costs[allocation] = artifact.statistics["cost"]
        assert plans[allocation].to_json() == artifact.parameters["plan"]
    assert costs[Allocation.steepest] < costs[Allocation.alpha] <= costs[Allocation.uniform]
    sizes = {"h1": 128 * 64, "h2": 64 * 64, "h3": 320 * 64, "h4": 160 * 64}
    dense = 8 * 3 * sum(sizes.values())
    for allocation, plan in plans.items():
        assert {len(row) for row in plan.sites.values()} == {3}
        dropped = sum(8 * sizes[name] * part.sparsity
                      for name, row in plan.sites.items() for part in row)  # fmt: skip
        bases = [part.basis for row in plan.sites.values() for part in row]
        transforms = bases.count("transform") * (64 * 64 + 4 * 64)
        assert dropped - transforms == pytest.approx(0.5 * dense, rel=1e-6)
        values = {name: {part.sparsity for part in row} for name, row in plan.sites.items()}
        if allocation is Allocation.uniform:
            assert len(set.union(*values.values())) == 1
        elif allocation is Allocation.alpha:
            assert len(values["h1"] | values["h3"]) == len(values["h2"] | values["h4"]) == 1
        else:
            assert len(set.union(*values.values())) > 6


def test_more_than_there_is_to_save_is_refused(loaded, corpus):
    method = LaRoSA(sparsity=0.95, transforms=Transforms.all, precision=Precision.model, **SMALL)
    with pytest.raises(MisfitError, match=r"at most 0\.\d+ .* and 0\.950 are asked for"):
        method.calibrate(loaded.model, loaded.tokenizer, corpus)
