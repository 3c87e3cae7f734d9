"""What a measurement or a calibration refuses of a model, and what it says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import trimtab
from tests.conftest import tiny
from trimtab.corpus import Corpus
from trimtab.errors import MisfitError, TrimtabError
from trimtab.evaluation.contenders import Contender
from trimtab.evaluation.scoring import Score
from trimtab.models.random import byte_tokenizer
from trimtab.models.sources import DType

QUALITY = {"windows": 2, "window_bytes": 96, "context_bytes": 16, "out_of_domain_windows": 0}
SPEED = {"warmup": 0, "repeats": 3, "seconds": 0}
STACKS: list[list[Any]] = [[], [trimtab.VAttention()]]
SMALL = {"tokens": 256, "window": 64, "probe_tokens": 128}


def measure(
    model: PreTrainedModel, corpus: Corpus, stack: list[Any], prompt_bytes: int = 32, **quality: Any
) -> dict[str, Any]:
    config = trimtab.MeasureConfig(
        quality=trimtab.QualityConfig(**{**QUALITY, **quality}),
        generation=trimtab.GenerationConfig(prompts=2, prompt_bytes=prompt_bytes, new_tokens=4),
        speed=trimtab.SpeedConfig(**SPEED),
        serving=trimtab.ServingConfig(requests=[]),
    )
    with trimtab.apply(model, byte_tokenizer(), stack) as optimized:
        return trimtab.measure(optimized, corpus, config)


@pytest.fixture
def overflowing() -> PreTrainedModel:
    model = tiny(dtype=DType.float16).model
    model.model.layers[-1].mlp.down_proj.weight.mul_(1e8)
    return model


@pytest.mark.parametrize("stack", STACKS, ids=["transformers", "engine"])
def test_a_model_that_overflows_is_named_with_its_dtype_before_anything_is_timed(
    corpus, overflowing, stack
):
    with pytest.raises(TrimtabError, match=r"predicts is not finite: load .*model.dtype=float32"):
        measure(overflowing, corpus, stack)


def test_a_likelihood_that_is_no_number_is_told_with_whose_it_is_and_the_dtype(overflowing):
    contender = Contender("baseline", overflowing, byte_tokenizer())
    message = "baseline, a LlamaForCausalLM in float16, .*no finite likelihood.*model.dtype=float32"
    with pytest.raises(TrimtabError, match=message):
        contender.finite(Score(float("nan"), 1, 1, 1, None))


@pytest.mark.parametrize(
    "method",
    [trimtab.LaRoSA(**SMALL), trimtab.AdaptiVocab(mode="full", size=8, max_bpb_increase=None)],
    ids=lambda one: one.name,
)
def test_a_model_that_overflows_is_not_calibrated(corpus, overflowing, method):
    with pytest.raises(TrimtabError, match=r"not finite: load .*\(model.dtype=float32\)"):
        method.calibrate(overflowing, byte_tokenizer(), corpus)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_damaged_weight_is_named_and_no_other_dtype_advised(corpus, value):
    model = tiny().model
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = value
    model.requires_grad_(False)
    drafting = trimtab.AdaptiVocab(mode="full", size=8, max_bpb_increase=None)
    for call in (
        lambda: trimtab.LaRoSA(**SMALL).calibrate(model, byte_tokenizer(), corpus),
        lambda: drafting.calibrate(model, byte_tokenizer(), corpus),
        lambda: measure(model, corpus, []),
    ):
        with pytest.raises(
            TrimtabError, match=r"finite.*layers\.1\.mlp\.up_proj.* is damaged"
        ) as said:
            call()
        assert "dtype" not in str(said.value)


def test_a_model_that_overflows_in_float32_is_not_told_of_another_dtype(corpus):
    model = tiny().model
    model.model.norm.weight.data.fill_(3e38)
    with pytest.raises(TrimtabError, match="it overflows even in float32: use another model"):
        measure(model, corpus, [])


@pytest.fixture
def short() -> PreTrainedModel:
    """Return a model whose table of positions has 128 rows."""
    loaded = tiny("tiny-gpt2").model
    loaded.config.n_positions = 128
    made: PreTrainedModel = type(loaded)(loaded.config)
    return made.eval()


@pytest.mark.parametrize("stack", STACKS, ids=["transformers", "engine"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window_bytes": 128}, "quality.window_bytes=128: a text has 129 tokens, and the model"),
        (
            {"prompt_bytes": 124},
            "generation.prompt_bytes=124 generation.new_tokens=4: a text has 129 tokens, and the",
        ),
    ],
)
def test_texts_longer_than_the_positions_name_the_setting(corpus, short, stack, changes, message):
    with pytest.raises(MisfitError, match=message):
        measure(short, corpus, stack, **changes)
    exact = {name: value - 1 for name, value in changes.items()}
    assert measure(short, corpus, stack, **exact)["status"] == "ok"


def test_a_text_that_the_cache_would_cut_is_refused_instead_of_compared(corpus):
    model, page = tiny().model, 4096
    cached = trimtab.VAttention(page_group=page, budget=3 * 6 * page)  # room for 96 tokens
    with pytest.raises(TrimtabError, match="of 93 tokens and a text of 4: the KV cache has room f"):
        measure(model, corpus, [cached], 93, window_bytes=64)
    assert measure(model, corpus, [cached], 92, window_bytes=64)["status"] == "ok"


@pytest.mark.parametrize(
    ("changes", "dtype", "message"),
    [
        ({"page_group": 1000}, DType.float32, "vattention.page_group=1000: expected a multiple of"),
        ({"budget": 4096}, DType.float32, "vattention.budget=4096: expected at least one page of"),
        ({}, DType.float64, "no KV cache in float64: load the model in float32, float16 or bfloat"),
    ],
)
def test_a_cache_that_cannot_be_made_is_refused_before_anything_is_calibrated(
    changes, dtype, message
):
    model = tiny(dtype=dtype).model
    with pytest.raises(TrimtabError, match=message):
        trimtab.VAttention(**changes).check(model)


@pytest.mark.parametrize("name", ["larosa", "adaptivocab"])
def test_a_calibration_window_longer_than_the_positions_is_refused(corpus, short, name):
    method = {"larosa": trimtab.LaRoSA, "adaptivocab": trimtab.AdaptiVocab}[name]()
    with pytest.raises(MisfitError, match=f"{name}.window=512: a text has 51. tokens, and the mo"):
        method.calibrate(short, byte_tokenizer(), corpus)


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gpt2", "tiny-opt"])
def test_a_checkpoint_that_says_not_to_use_a_cache_is_measured_with_one(corpus, name):
    plain, without = tiny(name).model, tiny(name).model
    without.config.use_cache = without.generation_config.use_cache = False
    found, expected = (measure(one, corpus, []) for one in (without, plain))
    for figure in ("live_bytes", "dynamic_bytes"):
        assert found["kv"][figure] == expected["kv"][figure] > 0
    with trimtab.apply(without, byte_tokenizer(), []) as optimized, torch.inference_mode():
        assert len(optimized.generate(["word"], max_new_tokens=3)[0].tokens) == 3


@pytest.mark.parametrize("stack", STACKS, ids=["transformers", "engine"])
def test_a_model_each_of_whose_tokens_ends_a_text_is_refused(corpus, stack):
    model = tiny().model
    model.generation_config.eos_token_id = [*range(1, 256)]
    assert measure(model, corpus, stack)["quality"]["greedy_agreement"]["estimate"] == 1
    model.generation_config.eos_token_id = [*range(256)]
    message = "lists 257 tokens as eos_token_id, all of the tokenizer's, so that every text ends"
    with pytest.raises(MisfitError, match=message):
        measure(model, corpus, stack)
