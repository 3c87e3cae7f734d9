"""Models as they are loaded the ordinary way: in training mode, with dropout and gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import trimtab
from tests.conftest import random_inputs
from trimtab.models.shapes import shapes

DROPOUT = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.5)
WORDS = {
    "size": 8, "tokens": 256, "validation_tokens": 128, "window": 64, "max_bpb_increase": None,
}  # fmt: skip
METHODS = {
    "larosa": trimtab.LaRoSA(tokens=256, window=64, probe_tokens=128),
    "draft": trimtab.AdaptiVocab(mode="draft", **WORDS),
    **{
        rows: trimtab.AdaptiVocab(mode="full", rows=rows, **WORDS)
        for rows in ("exponential", "fitted", "distilled")
    },
}


@pytest.fixture
def model() -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(**{**shapes()["tiny-gpt2"], **DROPOUT})
    made: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return made.train()


def require_as_it_was(model: PreTrainedModel) -> None:
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


@contextmanager
def of_the_caller() -> Iterator[None]:
    """Set what another part of a program may have set for itself."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
            yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", METHODS)
def test_what_is_calibrated_has_neither_dropout_nor_gradients(model, tokenizer, corpus, name):
    method = METHODS[name]
    with of_the_caller():
        found = method.calibrate(model, tokenizer, corpus)
    require_as_it_was(model)
    with method.apply(model, tokenizer, found):
        logits = model(random_inputs(1, 8)).logits
        assert not logits.requires_grad
        assert torch.equal(model(random_inputs(1, 8)).logits, logits)
    require_as_it_was(model)
    expected = method.calibrate(model.eval().requires_grad_(False), tokenizer, corpus)
    assert (found.key, found.statistics) == (expected.key, expected.statistics)
    for tensor, other in zip(found.tensors.values(), expected.tensors.values(), strict=True):
        assert torch.equal(tensor, other)


@pytest.mark.parametrize("paired", [True, False])
def test_what_is_measured_has_no_dropout(model, tokenizer, corpus, paired):
    config = trimtab.MeasureConfig(
        quality=trimtab.QualityConfig(windows=2, window_bytes=64, context_bytes=16),
        generation=trimtab.GenerationConfig(prompts=2, prompt_bytes=32, new_tokens=4),
        speed=trimtab.SpeedConfig(warmup=0, repeats=3, seconds=0),
        serving=trimtab.ServingConfig(requests=[]),
        paired=paired,
    )
    with trimtab.apply(model, tokenizer, []) as optimized:
        with of_the_caller():
            result = trimtab.measure(optimized, corpus, config)
        expected = trimtab.measure(optimized, corpus, config)
    require_as_it_was(model)
    both = result["quality"]["bits_per_byte"]
    assert both["baseline"] == both["candidate"]
    assert both == expected["quality"]["bits_per_byte"]


@pytest.mark.parametrize("name", METHODS)
def test_a_compiled_model_is_calibrated_as_it_is(model, tokenizer, corpus, name):
    expected = METHODS[name].calibrate(model, tokenizer, corpus)
    model.transformer.compile(backend="eager")
    for layer in model.transformer.h:
        layer.mlp.compile(backend="eager")
    model.eval()(torch.arange(8)[None])  # compiles them, without any hook
    found = METHODS[name].calibrate(model.train(), tokenizer, corpus)
    assert found.key == expected.key
    assert found.parameters == expected.parameters
    assert all(torch.equal(one, expected.tensors[key]) for key, one in found.tensors.items())
