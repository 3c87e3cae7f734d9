"""Copies of models with functions set on their modules."""

from __future__ import annotations

import copy
from functools import partial, wraps
from types import MethodType
from typing import Any

import pytest
import torch
from torch import nn

import trimtab
from tests.conftest import tiny
from tests.models.test_edits import IDS
from trimtab.errors import TrimtabError
from trimtab.evaluation.memory import copied, twin
from trimtab.larosa import LaRoSA

GIVEN: list[Any] = []


def compiled(module: Any) -> None:
    module.forward = torch.compile(module.forward, backend="eager")


def closure(module: Any) -> None:
    run = module.forward

    @wraps(run)
    def forward(*args: Any, **more: Any) -> Any:
        return run(*args, **more)

    module.forward = forward


def default(module: Any) -> None:
    module.forward = lambda *args, run=module.forward, **more: run(*args, **more)


def recursive(module: Any) -> None:
    runs = {"forward": [module.forward]}

    def forward(*args: Any, again: bool = True, **more: Any) -> Any:
        return forward(*args, again=False, **more) if again else runs["forward"][0](*args, **more)

    module.forward = forward


def with_partial(module: Any) -> None:
    closure(module)
    module.forward = partial(lambda run, *args, **more: run(*args, **more), module.forward)


def from_global(module: Any) -> None:
    GIVEN[:] = [module.forward]
    module.forward = lambda *args, **more: GIVEN[0](*args, **more)


def method(module: Any) -> None:
    def forward(self: Any, *args: Any, **more: Any) -> Any:
        return type(self).forward(self, *args, **more)

    module.forward = MethodType(forward, module)


def compiled_whole(module: Any) -> None:
    module.compile(backend="eager")


@torch.no_grad()
@pytest.mark.parametrize("part", ["", "model.layers.1"], ids=["model", "layer"])
@pytest.mark.parametrize(
    "change",
    [compiled, compiled_whole, closure, default, recursive, with_partial, from_global],
)
def test_a_copy_that_would_run_the_original_is_refused(change, part):
    model = tiny().model
    change(model.get_submodule(part))
    for made in (copied, twin):
        with pytest.raises(TrimtabError, match=f"{part or 'the model'} cannot be copied"):
            made(model)


def test_a_hook_that_knows_the_original_is_refused():
    model, seen = tiny().model, []
    handle = model.register_forward_pre_hook(lambda *_: seen.append(model))
    with pytest.raises(TrimtabError, match="the model cannot be copied"):
        copied(model)
    handle.remove()
    model.register_forward_pre_hook(lambda own, _: seen.append(own))
    made = copied(model)
    made(IDS)
    model(IDS)
    assert [*map(id, seen)] == [id(made), id(model)]


@torch.no_grad()
def test_a_copy_runs_its_own_parts():
    model = tiny().model
    method(model)
    expected = model(IDS).logits
    for one in (copied(model), twin(model)):
        with model.model.layers[1].register_forward_pre_hook(lambda *_: pytest.fail("not this")):
            assert torch.equal(one(IDS).logits, expected)
        one.model.layers[1].mlp = nn.Identity()
        assert not torch.allclose(one(IDS).logits, expected)
    assert torch.equal(model(IDS).logits, expected)


CONFIG = trimtab.MeasureConfig(
    quality=trimtab.QualityConfig(
        windows=2, window_bytes=96, context_bytes=16, out_of_domain_windows=0
    ),
    generation=trimtab.GenerationConfig(prompts=2, prompt_bytes=32, new_tokens=4),
    speed=trimtab.SpeedConfig(repeats=3, warmup=0, seconds=0),
    serving=trimtab.ServingConfig(requests=[]),
)
LAROSA = LaRoSA(tokens=256, window=64, probe_tokens=128, sparsity=0.8)


def test_a_baseline_that_runs_the_optimized_model_is_refused(corpus):
    model, tokenizer = tiny().model, tiny().tokenizer
    compiled(model)
    artifact = trimtab.calibrate(model, tokenizer, LAROSA, corpus)
    baseline = copy.deepcopy(model)
    with (
        trimtab.apply(model, tokenizer, [artifact]) as optimized,
        pytest.raises(TrimtabError, match="baseline runs parts of the optimized model"),
    ):
        trimtab.measure(optimized, corpus, CONFIG, baseline=baseline)
