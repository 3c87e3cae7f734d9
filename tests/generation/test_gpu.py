"""The engine on an NVIDIA GPU: ``pytest -m gpu``."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel

from tests.generation.models import engine_for, model_of, prompts_of, stock
from trimtab.generation import Sampling
from trimtab.models.sources import DType

pytestmark = pytest.mark.gpu

PROMPTS = prompts_of(5, 21, 1, 33, 16, 8)
PAGE = 2 << 20


def on_gpu(variant: str, dtype: DType = DType.float32) -> PreTrainedModel:
    return torch.nn.Module.to(model_of(variant, dtype), "cuda")


@pytest.mark.parametrize("variant", ["llama", "mistral, window", "gemma2", "phi3", "opt", "gpt2"])
def test_greedy_text_is_what_transformers_generates(variant):
    model = on_gpu(variant)
    expected = [stock(model, prompt, 16) for prompt in PROMPTS]
    with engine_for(model) as engine:
        assert engine.decode_step.startswith("decode step in a CUDA graph")
        found = engine.generate(PROMPTS, max_new_tokens=16)
    assert [one.tokens for one in found] == expected


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0, seed=3)], ids=str)
def test_a_small_budget_and_another_order_change_nothing(sampling):
    """In steps of as many rows, whatever runs.

    The tiny Llama has two planes, a page of which holds 10 922 tokens: two of four texts fit.
    """
    model = on_gpu("llama", DType.bfloat16)

    def run(prompts: list[list[int]], budget: int | None = None) -> tuple[list[list[int]], int]:
        with engine_for(model, slots=4, batch_invariant=True, budget=budget) as engine:
            found = engine.generate(prompts, max_new_tokens=12, sampling=sampling)
            return [one.tokens for one in found], engine.stats.decode_steps

    expected, steps = run(PROMPTS)
    found, steps_of_two = run(PROMPTS, 2 * 2 * PAGE)
    assert found == expected
    assert steps_of_two > steps
    assert run(PROMPTS[:1])[0] == expected[:1]
    if sampling == Sampling():  # draws depend on the index of a prompt
        order = [3, 0, 5, 1, 4, 2]
        found, _ = run([PROMPTS[index] for index in order])
        assert found == [expected[index] for index in order]


def test_an_interruption_leaves_the_engine_usable():
    model = on_gpu("llama")

    def interrupt(index: int, token: int, text: str) -> None:
        raise KeyboardInterrupt

    with engine_for(model) as engine:
        with pytest.raises(KeyboardInterrupt):
            engine.generate(PROMPTS, max_new_tokens=4, on_token=interrupt)
        assert engine.kv.stats().live == 0
        (found,) = engine.generate(PROMPTS[:1], max_new_tokens=8)
    assert found.tokens == stock(model, PROMPTS[0], 8)
