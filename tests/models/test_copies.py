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
from trimtab.models.copies import runs_parts_of

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


CHANGES = [compiled, compiled_whole, closure, default, recursive, with_partial, from_global, method]


@torch.no_grad()
@pytest.mark.parametrize("part", ["", "model.layers.1"], ids=["model", "layer"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_copy_runs_its_own_parts(change, part):
    model = tiny().model
    change(model.get_submodule(part))
    expected = model(IDS).logits
    both = copied(model), twin(model)
    for one in both:
        assert not runs_parts_of(one, model)
        with model.register_forward_pre_hook(lambda *_: pytest.fail("the original ran")):
            layer = model.model.layers[1]
            with layer.register_forward_pre_hook(lambda *_: pytest.fail("the original ran")):
                assert torch.equal(one(IDS).logits, expected)
        one.model.layers[1].mlp = nn.Identity()
        assert not torch.allclose(one(IDS).logits, expected)
    assert torch.equal(model(IDS).logits, expected)


def test_hooks_of_a_copy_know_the_copy():
    model, seen = tiny().model, []
    model.register_forward_pre_hook(lambda *_: seen.append(model))
    made = copied(model)
    made(IDS)
    model(IDS)
    assert [*map(id, seen)] == [id(made), id(model)]


@pytest.mark.parametrize("whole", [False, True], ids=["forward", "module"])
def test_a_copy_of_a_compiled_model_is_compiled(whole):
    model, compilations = tiny().model, []

    def backend(graph: Any, _: Any) -> Any:
        compilations.append(graph)
        return graph

    if whole:
        model.compile(backend=backend)
    else:
        model.forward = torch.compile(model.forward, backend=backend)
    with torch.no_grad():
        copied(model)(IDS)
    assert compilations


CONFIG = trimtab.MeasureConfig(
    quality=trimtab.QualityConfig(
        windows=2, window_bytes=96, context_bytes=16, out_of_domain_windows=0
    ),
    generation=trimtab.GenerationConfig(prompts=2, prompt_bytes=32, new_tokens=4),
    speed=trimtab.SpeedConfig(repeats=3, warmup=0, seconds=0),
    serving=trimtab.ServingConfig(requests=[]),
)
LAROSA = LaRoSA(tokens=256, window=64, probe_tokens=128, sparsity=0.8)


def test_the_baseline_of_a_measurement_is_the_unmodified_model(corpus):
    found = []
    for edit in (lambda _: None, closure):
        model, tokenizer = tiny().model, tiny().tokenizer
        edit(model)
        artifact = trimtab.calibrate(model, tokenizer, LAROSA, corpus)
        with trimtab.apply(model, tokenizer, [artifact]) as optimized:
            found.append(trimtab.measure(optimized, corpus, CONFIG)["quality"]["bits_per_byte"])
    assert found[0]["difference"]["estimate"] != 0
    assert found[1] == found[0]


def test_a_baseline_that_runs_the_optimized_model_is_refused(corpus):
    model, tokenizer = tiny().model, tiny().tokenizer
    compiled(model)
    artifact = trimtab.calibrate(model, tokenizer, LAROSA, corpus)
    baseline = copy.deepcopy(model)
    with (
        trimtab.apply(model, tokenizer, [artifact]) as optimized,
        pytest.raises(TrimtabError, match="baseline runs parts of the optimized model: .* leave"),
    ):
        trimtab.measure(optimized, corpus, CONFIG, baseline=baseline)
