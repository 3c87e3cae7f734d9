"""The engine on a model that `torch.compile` has been applied to, and what keeps its cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import trimtab
from tests.generation.models import TOKENIZER, engine_for, model_of, prompts_of, stock

PROMPTS = prompts_of(9, 4)


class Backend:
    """Runs what is compiled as it is, and counts how often."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, graph: torch.fx.GraphModule, _: object) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            self.runs += 1
            return graph(*args)

        return run


def compile_in_place(model: Any, backend: Backend) -> None:
    model.compile(backend=backend)


def compile_forward(model: Any, backend: Backend) -> None:
    model.forward = torch.compile(model.forward, backend=backend)


def compile_layers(model: Any, backend: Backend) -> None:
    for layer in model.model.layers:
        layer.compile(backend=backend)


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("compiled", [compile_in_place, compile_forward, compile_layers])
def test_the_engine_traces_nothing_over_its_cache_and_leaves_the_model_compiled(compiled):
    model, backend = model_of("llama"), Backend()
    expected = [stock(model, prompt, 6) for prompt in PROMPTS]
    ids = torch.tensor(PROMPTS[:1])
    logits = model(ids).logits
    compiled(model, backend)
    runs = [0]
    with trimtab.apply(model, TOKENIZER, [trimtab.VAttention()]) as optimized:
        for _ in range(2):
            torch.testing.assert_close(model(ids).logits, logits)
            assert backend.runs > runs[-1]
            runs.append(backend.runs)
            found = optimized.generate(PROMPTS, max_new_tokens=6)
            assert [completion.tokens for completion in found] == expected
            assert backend.runs == runs[-1]
    with engine_for(model) as engine:
        engine.logits(PROMPTS[0], PROMPTS[1])
    assert backend.runs == runs[-1]
    torch.testing.assert_close(model(ids).logits, logits)
    assert backend.runs > runs[-1]


def mappings() -> int:
    """Return how many mappings of caches' memory the process has."""
    return Path("/proc/self/maps").read_text().count("trimtab-kv")


def test_texts_are_not_lost_where_something_keeps_the_cache():
    model, kept, before = model_of("llama"), [], mappings()
    expected = stock(model, PROMPTS[0], 6)

    def keep(module: nn.Module, args: object, kwargs: dict[str, Any]) -> None:
        kept.append(kwargs["step"])

    with trimtab.apply(model, TOKENIZER, [trimtab.VAttention()]) as optimized:
        hook = model.register_forward_pre_hook(keep, with_kwargs=True)
        with pytest.warns(RuntimeWarning, match=r"memory until .* dropped: 6 tensors .* alive"):
            (found,) = optimized.generate(PROMPTS[:1], max_new_tokens=6)
        hook.remove()
    assert found.tokens == expected
    assert mappings() > before
    kept.clear()
    assert mappings() == before
