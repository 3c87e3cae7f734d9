"""Decode plans beyond the contract: windows, rows, threads, refusals, and sparse models."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from tests.conftest import SHAPES, random_inputs
from tests.generation.models import CHANGED, model_of
from tests.models.contract import assert_equal, draw, stepwise
from tests.models.larosa_contract import SMALL, calibrated
from tests.models.plan_contract import LENGTH, PlanContract, empty_cache, plan_of, steps_of
from trimtab.artifact import Artifact
from trimtab.generation.executor import MOST_ROWS
from trimtab.larosa import LaRoSA, Precision, RotationScope, Selection, Transforms
from trimtab.larosa.apply import sparsified
from trimtab.larosa.plan import Plan
from trimtab.larosa.selection import Selectors
from trimtab.models.adapter import adapter_for
from trimtab.models.decode_parts import joined
from trimtab.models.sources import DType
from trimtab_kernels.decode_step import Activation, Linear, Norm, SiteInput, cpu
from trimtab_kernels.decode_step.reference import decode_step


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    assert cpu.unavailable(torch.float32, torch.device("cpu")) is None


class TestMistralWithAWindow(PlanContract):
    shape, changes = CHANGED["mistral, window"]


class TestQwen2WithAWindow(PlanContract):
    shape, changes = CHANGED["qwen2, window"]


class TestPhi3WithAWindow(PlanContract):
    shape, changes = CHANGED["phi3, window"]


class TestGPT2ScaledByLayer(PlanContract):
    shape, changes = CHANGED["gpt2, scaled by layer"]


def test_every_change_of_a_config_has_its_contract():
    tests = [test for test in PlanContract.__subclasses__() if test.__module__ == __name__]
    assert [(test.shape, test.changes) for test in tests] == list(CHANGED.values())


@pytest.mark.parametrize("variant", ["gemma3", "gpt2"])  # outputs are rows, or inputs are
def test_a_row_is_computed_as_if_it_were_alone(variant):
    model = model_of(variant)
    plan, ids = plan_of(model), random_inputs(2, LENGTH)
    together, apart = (cpu.CpuExecutor(plan, *empty_cache(model, 3)) for _ in range(2))
    for step in steps_of(ids):
        rows = [apart.step(*(part[row : row + 1] for part in step)) for row in range(len(step[0]))]
        assert torch.equal(together.step(*step), torch.cat(rows))


@pytest.mark.parametrize("variant", ["gemma3", "gpt2"])
@pytest.mark.parametrize("count", range(2, MOST_ROWS + 1))
def test_no_number_of_rows_changes_the_bits_of_one(variant, count):
    model = model_of(variant)
    plan, (ids, _) = plan_of(model), random_inputs(2, LENGTH)
    together, apart = (cpu.CpuExecutor(plan, *empty_cache(model, 3)) for _ in range(2))
    step = ids[:count], torch.zeros(count, dtype=torch.int64), torch.arange(count)
    rows = [apart.step(*(part[row : row + 1] for part in step)) for row in range(count)]
    assert torch.equal(together.step(*step), torch.cat(rows))


@pytest.mark.parametrize("threads", [2, 3, 5])
@pytest.mark.parametrize("variant", ["phi3, window", "gpt2"])
def test_the_number_of_threads_changes_no_bit(variant, threads):
    model = model_of(variant)
    plan, ids = plan_of(model), random_inputs(2, LENGTH)
    alone, many = (cpu.CpuExecutor(plan, *empty_cache(model, 3)) for _ in range(2))
    for step in steps_of(ids):
        expected = alone.step(*step)
        torch.set_num_threads(threads)
        try:
            assert torch.equal(many.step(*step), expected)
        finally:
            torch.set_num_threads(1)


def test_parts_of_other_widths_are_refused():
    model = model_of("gemma3")
    plan = plan_of(model)
    (layer, *_), one = plan.layers, torch.ones(1)
    width = layer.output.weight.shape[0]
    for changed, message in (
        ({"output": replace(layer.output, bias=one)}, "output.bias has 1 entries; expected 64"),
        ({"mlp_input": SiteInput(Norm(one, None, 1e-5, False))}, "mlp_input.norm.weight has 1 ent"),
        ({"post_mlp": Norm(one, None, 1e-5, False)}, "a post-norm's weight has 1 entries"),
        ({"key_norm": Norm(one, None, 1e-5, False)}, "a head norm's weight has 1 entries"),
        ({"attention_output": SiteInput(transform=torch.eye(width))}, "attention_output has a tra"),
    ):
        layers = (replace(layer, **changed), *plan.layers[1:])
        with pytest.raises(ValueError, match=message):
            cpu.CpuExecutor(replace(plan, layers=layers), *empty_cache(model, 3))


def test_an_activation_is_named_or_refused():
    layer = plan_of(model_of("gpt2")).layers[0]
    assert replace(layer, activation="relu").activation is Activation.relu
    with pytest.raises(ValueError, match="'tanh' is not a valid Activation"):
        replace(layer, activation="tanh")


OUTSIDE: list[tuple[tuple[list[int], ...], str]] = [
    (([256 + 64], [0], [0]), "token 320; expected 0 to 319"),
    (([1], [3], [0]), "position 0 of slot 3 is outside a cache"),
    (([1], [0], [LENGTH]), f"position {LENGTH} of slot 0 is outside"),
    (([1, 2], [0], [0, 1]), "slots is torch.int64 of shape"),
    (([], [], []), "0 tokens; expected 1 to"),
]


@pytest.mark.parametrize(("step", "message"), OUTSIDE)
def test_a_step_outside_model_or_cache_is_refused(step, message):
    model = model_of()
    executor = cpu.CpuExecutor(plan_of(model), *empty_cache(model, 3))
    rows = [torch.tensor(row, dtype=torch.int64) for row in step]
    with pytest.raises(ValueError, match=message):
        executor.step(*rows)


SPARSE: dict[str, dict[str, Any]] = {
    "thresholds": {},
    "exact counts": {"selection": Selection.topk, "dense_prefix": 5},
    "capped": {"selection": Selection.capped, "precision": Precision.model},
    "rotated stream": {"residual": RotationScope.layer, "transforms": Transforms.all},
}


@pytest.mark.parametrize("name", SPARSE)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_sparse_models_plan_drops_what_the_model_drops(corpus, shape, name):
    method = LaRoSA(**{"transforms": Transforms.all, **SMALL, **SPARSE[name]})
    loaded = draw(shape, DType.float64, tied=True)
    if adapter_for(loaded.model).post_norms and method.residual is not RotationScope.none:
        pytest.skip("this architecture's stream cannot be rotated")
    artifact = calibrated(loaded, method, corpus)
    model, ids = loaded.model, random_inputs(1, LENGTH)
    with method.apply(model, loaded.tokenizer, artifact) as applied:
        expected = stepwise(model, ids, 1)
        plan, cache = plan_of(model), empty_cache(model, 1)
        assert {len(layer.projections) for layer in plan.layers} == {1}
        assert {len(layer.mlp) for layer in plan.layers} == {1}
        assert all(torch.equal(part.counts, torch.zeros(2)) for part in applied.selectors)
        for at in range(LENGTH):
            step = ids[:, at], torch.tensor([0]), torch.tensor([at])
            assert_equal(decode_step(plan, *cache, *step), expected[:, at])
        counted = [part.counts.tolist() for part in applied.selectors]
    # The same tensors in float32: an executor drops what the reference drops, but for one
    # magnitude that may be within a rounding of its threshold.
    narrow = loaded.model.float()
    with sparsified_as(narrow, method, artifact) as selectors:
        plan, cache, own = plan_of(narrow), empty_cache(narrow, 1), empty_cache(narrow, 1)
        executor = cpu.CpuExecutor(plan, *own)
        differences = []
        for at in range(LENGTH):
            for ours, theirs in zip(own, cache, strict=True):
                for one, other in zip(ours, theirs, strict=True):
                    one.copy_(other)
            step = ids[:, at], torch.tensor([0]), torch.tensor([at])
            found, expected = executor.step(*step), decode_step(plan, *cache, *step)
            differences.append(float((found - expected).abs().max() / expected.abs().max()))
        assert sorted(differences)[-2] < 1e-4
        kept, seen = zip(*(part.counts.tolist() for part in selectors.made), strict=True)
    assert [2 * total for _, total in counted] == list(seen)
    assert sum(kept) == pytest.approx(2 * sum(found for found, _ in counted), rel=5e-3)


def weight_of(*sizes: int) -> list[Linear]:
    """Return linear layers of 3 inputs whose weights are columns of one matrix, in order."""
    whole = torch.arange(3.0 * sum(sizes)).reshape(3, -1)
    return [Linear(part) for part in whole.split(list(sizes), dim=1)]


def test_linear_layers_side_by_side_are_one():
    (one,) = joined(weight_of(4, 1, 2))
    assert one.bias is None
    assert torch.equal(one.weight, torch.arange(21.0).reshape(3, 7))
    biases = torch.arange(7.0).split([4, 1, 2])
    parts = zip(weight_of(4, 1, 2), biases, strict=True)
    (one,) = joined([Linear(part.weight, bias) for part, bias in parts])
    assert one.bias is not None
    assert torch.equal(one.bias, torch.arange(7.0))


@pytest.mark.parametrize(
    "parts",
    [
        [Linear(part.weight.clone()) for part in weight_of(4, 2)],
        weight_of(4, 2)[::-1],
        weight_of(4, 1, 2)[::2],
        [Linear(part.weight, torch.ones(2)) for part in weight_of(2, 2)],
        [*map(Linear, [part.weight for part in weight_of(2, 2)], [None, torch.ones(2)])],
        [Linear(part.weight.T) for part in weight_of(3, 3)],
        [Linear(part) for part in torch.arange(18.0).reshape(2, 3, 3)],
    ],
    ids=["apart", "in another order", "with a gap", "biases apart", "one bias", "output-major",
         "one after another"],
)  # fmt: skip
def test_other_linear_layers_stay_apart(parts):
    assert all(a is b for a, b in zip(joined(parts), parts, strict=True))


def test_all_of_a_steps_time_is_said_to_go_somewhere():
    model = model_of()
    executor = cpu.CpuExecutor(plan_of(model), *empty_cache(model, 3))
    step = torch.tensor([5]), torch.tensor([0]), torch.tensor([0])
    executor.step(*step)
    before, started = executor.seconds, time.perf_counter()
    for _ in range(50):
        executor.step(*step)
    elapsed, after = time.perf_counter() - started, executor.seconds
    spent = {work: after[work] - seconds for work, seconds in before.items()}
    assert 0 < sum(spent.values()) <= elapsed
    assert spent.pop("transforms") == 0
    assert all(seconds > 0 for seconds in spent.values())


@contextmanager
def sparsified_as(
    model: PreTrainedModel, method: LaRoSA, artifact: Artifact
) -> Iterator[Selectors]:
    plan = Plan.from_json(artifact.parameters["plan"])
    selectors = Selectors(plan, method)
    with sparsified(model, plan, artifact.tensors, selectors.selector), selectors.following(model):
        yield selectors
