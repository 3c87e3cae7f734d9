"""Stacks on all architectures: calibrated, measured, and the model as it was afterwards."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest
import torch

import trimtab
from tests.conftest import SHAPES, tiny
from trimtab.calibration import artifacts_for
from trimtab.method import Method
from trimtab.stack import Stack

LAROSA = trimtab.LaRoSA(tokens=512, window=64, probe_tokens=128)
DRAFT = trimtab.AdaptiVocab(mode="draft", tokens=512, window=64)
FULL = trimtab.AdaptiVocab(
    mode="full", size=16, tokens=256, validation_tokens=128, window=64, rows="exponential",
    max_bpb_increase=None,
)  # fmt: skip
AUTO = trimtab.AdaptiVocab(
    mode="auto", size=16, tokens=256, validation_tokens=128, window=64, rows="exponential",
    max_bpb_increase=1000.0,
)  # fmt: skip
VIRTUAL = trimtab.VAttention()
STACKS: dict[str, tuple[Method, ...]] = {
    "baseline": (),
    "larosa": (LAROSA,),
    "adaptivocab": (FULL,),
    "vattention": (VIRTUAL,),
    "fused": (DRAFT, VIRTUAL),
    "all": (FULL, LAROSA, VIRTUAL),
}
# Each on one architecture alone.
ONCE: dict[tuple[str, str], tuple[Method, ...]] = {
    ("tiny-mistral", "larosa,vattention"): (LAROSA, VIRTUAL),
    ("tiny-gpt2", "adaptivocab,larosa"): (FULL, LAROSA),
    ("tiny-gemma3", "auto"): (AUTO,),
}
CASES = {case: STACKS[case[1]] for case in product(SHAPES, STACKS)} | ONCE
CONFIG = trimtab.MeasureConfig(
    quality=trimtab.QualityConfig(
        windows=2, window_bytes=96, context_bytes=16, out_of_domain_windows=0,
        compression_windows=2, compression_context_bytes=64, compression_bytes=32,
        marginal_likelihood_windows=0,
    ),
    generation=trimtab.GenerationConfig(prompts=2, prompt_bytes=32, new_tokens=6),
    speed=trimtab.SpeedConfig(repeats=3, warmup=0, seconds=0),
    serving=trimtab.ServingConfig(requests=[]),
    energy=trimtab.EnergyConfig(blocks=0),
)  # fmt: skip


@pytest.mark.parametrize(("shape", "name"), CASES)
def test_a_stack_is_measured_and_leaves_the_model_as_it_was(corpus, tmp_path, shape, name):
    loaded, methods = tiny(shape), CASES[shape, name]
    before = {key: value.clone() for key, value in loaded.model.state_dict().items()}
    artifacts = artifacts_for(Stack(methods), loaded, corpus, tmp_path, make=True)
    members: list[Any] = [artifacts.get(one.name, one) for one in methods]
    with trimtab.apply(loaded.model, loaded.tokenizer, members) as optimized:
        result = trimtab.measure(optimized, corpus, CONFIG)
    after = loaded.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert result["methods"] == [one.name for one in Stack(methods).methods]
    assert all(math.isfinite(one) for one in result["speed"]["speedup"].values())
    quality = result["quality"]
    if not {"larosa", "adaptivocab"} & {*result["methods"]} or name == "fused":  # lossless
        assert (quality["exact_match"]["estimate"], result["tokens"]["saving"]) == (1, 0)
        assert quality["bits_per_byte"]["difference"]["estimate"] == pytest.approx(0, abs=1e-5)
    else:
        assert quality["bits_per_byte"]["difference"]["estimate"] != 0
    assert (result["sparsity"] is not None) == ("larosa" in result["methods"])
    assert (result["engine"] is not None) == (VIRTUAL in methods or AUTO in methods)
    assert (result["tokens"]["prompt"]["saving"] > 0) == (FULL in methods or AUTO in methods)
