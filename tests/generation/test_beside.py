"""What other threads see of a model, and of PyTorch, while ours measure and generate."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import trimtab
from tests.conftest import tiny
from tests.generation.models import TOKENIZER, prompts_of

PROMPTS = prompts_of(5, 9, 3)
TEXTS = [" ".join(f"word{(n * 7 + i * i) % 97}" for i in range(300)) for n in range(12)]
MEASURED = trimtab.MeasureConfig(
    quality=trimtab.QualityConfig(windows=2, window_bytes=600, context_bytes=32),
    generation=trimtab.GenerationConfig(prompts=2, prompt_bytes=32, new_tokens=4),
    speed=trimtab.SpeedConfig(repeats=3, warmup=0, seconds=0),
)

LIKELIHOOD = "trimtab.evaluation.metrics.likelihood.Likelihood"


@contextmanager
def looking(model: PreTrainedModel, look: Callable[[], Any]) -> Iterator[list[Any]]:
    """Note what `look` returns whenever the model runs within the block."""
    seen: list[Any] = []
    with model.model.register_forward_pre_hook(lambda *given: seen.append(look())):
        yield seen


def test_a_models_generation_config_is_its_own_throughout():
    model = tiny().model
    baseline = copy.deepcopy(model)
    own, other = model.generation_config, baseline.generation_config
    with (
        trimtab.apply(model, TOKENIZER, []) as optimized,
        looking(model, lambda: model.generation_config is own) as seen,
        looking(baseline, lambda: baseline.generation_config is other) as beside,
    ):
        optimized.generate(PROMPTS, max_new_tokens=4)
        trimtab.measure(optimized, TEXTS, MEASURED, baseline=baseline)
    assert {*seen, *beside} == {True}


def test_a_generate_that_was_put_on_the_model_is_not_called():
    """It may be bound to the model, and then goes by the model's own settings."""
    model = tiny().model
    with trimtab.apply(model, TOKENIZER, []) as optimized:
        expected = optimized.generate(PROMPTS, max_new_tokens=4)
        model.generate = lambda **options: pytest.fail("it was called")
        found = optimized.generate(PROMPTS, max_new_tokens=4)
    assert [one.tokens for one in found] == [one.tokens for one in expected]


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-opt"])
def test_the_default_dtype_is_left_alone_and_changes_nothing(name):
    """Whoever loads a model in another thread sets it for that time, for all threads."""
    model, found = tiny(name).model, []
    model.generation_config.eos_token_id = None
    method = trimtab.LaRoSA(tokens=600, window=300, probe_tokens=300)
    config = dataclasses.replace(
        MEASURED, serving=trimtab.ServingConfig(requests=[]), metrics={"likelihood": LIKELIHOOD}
    )
    for dtype in (torch.float32, torch.bfloat16):
        torch.set_default_dtype(dtype)
        try:
            with looking(model, torch.get_default_dtype) as seen:
                made = trimtab.calibrate(model, TOKENIZER, method, TEXTS)
                with trimtab.apply(model, TOKENIZER, [made]) as optimized:
                    tokens = [one.tokens for one in optimized.generate(PROMPTS, max_new_tokens=4)]
                    result = trimtab.measure(optimized, TEXTS, config)
            assert {*seen, torch.get_default_dtype()} == {dtype}
        finally:
            torch.set_default_dtype(torch.float32)
        tensors = {name: tensor.tolist() for name, tensor in made.tensors.items()}
        found.append([made.statistics, tensors, tokens, result["quality"]["bits_per_byte"]])
    assert found[0] == found[1]


@pytest.mark.parametrize("stack", [[], [trimtab.VAttention()]])
def test_a_sample_neither_reads_nor_moves_the_random_numbers_of_others(stack):
    model, drawing = tiny().model, trimtab.Sampling(temperature=1.0, top_k=50, top_p=0.9, seed=3)
    model.generation_config.eos_token_id = None
    with trimtab.apply(model, TOKENIZER, stack) as optimized:

        def sample() -> list[list[int]]:
            made = optimized.generate(PROMPTS, max_new_tokens=8, sampling=drawing)
            return [one.tokens for one in made]

        expected = sample()
        before = torch.get_rng_state()
        with looking(model, lambda: torch.rand(1).item()) as drawn:
            assert sample() == expected
        torch.set_rng_state(before)
        assert [torch.rand(1).item() for _ in drawn] == drawn
