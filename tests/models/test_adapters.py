import re
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DynamicCache,
    OPTConfig,
    OPTForCausalLM,
)

from tests.conftest import SHAPES, random_inputs, tiny
from tests.generation.models import engine_for
from tests.models.contract import AdapterContract
from tests.models.larosa_contract import LaRoSAContract
from tests.models.plan_contract import PlanContract
from trimtab.errors import MisfitError
from trimtab.models.adapter import ADAPTERS, adapter_for, head_shape
from trimtab.models.shapes import shapes


class TestLlama(AdapterContract, LaRoSAContract, PlanContract):
    shape = "tiny-llama"


class TestMistral(AdapterContract, LaRoSAContract, PlanContract):
    shape = "tiny-mistral"


class TestQwen2(AdapterContract, LaRoSAContract, PlanContract):
    shape = "tiny-qwen2"


class TestQwen3(AdapterContract, LaRoSAContract, PlanContract):
    shape = "tiny-qwen3"


class TestGemma2(AdapterContract, LaRoSAContract, PlanContract):
    shape = "tiny-gemma2"


class TestGemma3(AdapterContract, LaRoSAContract, PlanContract):
    shape = "tiny-gemma3"


class TestPhi3(AdapterContract, LaRoSAContract, PlanContract):
    shape = "tiny-phi3"


class TestOPT(AdapterContract, LaRoSAContract, PlanContract):
    shape = "tiny-opt"


class TestGPT2(AdapterContract, LaRoSAContract, PlanContract):
    shape = "tiny-gpt2"


def test_an_unsupported_architecture_is_refused_by_name_with_the_supported_ones():
    class NovelForCausalLM(nn.Module):
        pass

    with pytest.raises(MisfitError, match="NovelForCausalLM is not supported") as error:
        adapter_for(NovelForCausalLM())
    assert all(name in str(error.value) for name in ADAPTERS)


@pytest.mark.parametrize(
    ("setting", "found", "expected"),
    [
        ("do_layer_norm_before", False, True),  # OPT-350m
        ("word_embed_proj_dim", 32, 64),  # OPT-350m
        ("layer_norm_elementwise_affine", False, True),
        ("_remove_final_layer_norm", True, False),
    ],
)
def test_a_variant_of_opt_with_other_parts_is_refused(setting, found, expected):
    config = OPTConfig(**{**shapes()["tiny-opt"], setting: found})
    message = f"OPTForCausalLM with {setting}={found} is not supported, only with"
    with pytest.raises(MisfitError, match=f"{message} {setting}={expected}"):
        adapter_for(OPTForCausalLM(config))


@pytest.mark.parametrize("setting", ["is_causal", "return_dict"])
@pytest.mark.parametrize("shape", SHAPES)
def test_what_no_architecture_is_supported_without_is_refused(shape, setting):
    model = tiny(shape).model
    setattr(model.config, setting, False)
    with pytest.raises(MisfitError, match=f"with {setting}=False is not supported"):
        adapter_for(model)


@pytest.mark.parametrize("shape", SHAPES)
def test_caches_and_attention_have_the_same_windows_or_the_model_is_refused(shape):
    sliding, full = "sliding_attention", "full_attention"
    asked = [
        {"sliding_window": 8},
        {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 1},
        {"sliding_window": 8, "layer_types": [full, sliding, full]},
        {"sliding_window": None, "layer_types": [sliding] * 3},
        {"attention_chunk_size": 8},
    ]
    if "gemma" not in shape:  # which transformers never runs without a window
        asked.append({"sliding_window": None, "layer_types": [full] * 3})
    ids = random_inputs(1, 24)
    supported = 0
    for settings in asked:
        named = {**shapes()[shape], "pad_token_id": 0, **settings}
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**named)).eval()
        try:
            adapter_for(model)
        except MisfitError as error:
            assert re.search("with (sliding_w|layer_t|attention_chunk)", str(error))  # noqa: PT017
            continue
        supported += 1
        with torch.no_grad():
            whole = model(ids, use_cache=False).logits[:, -1]
            cache = DynamicCache(config=model.config)
            for token in ids.split(1, 1):
                last = model(token, past_key_values=cache).logits[:, -1]
        torch.testing.assert_close(last, whole)
    assert supported > 0


@pytest.mark.parametrize("shape", ["tiny-llama", "tiny-opt", "tiny-gpt2"])
def test_a_window_that_the_attention_does_not_have_is_refused(shape):
    model = tiny(shape).model
    model.config.sliding_window = 8
    message = "with sliding_window=8 is not supported, only with sliding_window=None"
    with pytest.raises(MisfitError, match=message):
        adapter_for(model)


@pytest.mark.parametrize("shape", ["tiny-mistral", "tiny-phi3"])
def test_kinds_of_layers_that_the_attention_does_not_have_are_refused(shape):
    model = tiny(shape).model
    layers = model.config.num_hidden_layers
    model.config.sliding_window = 8
    model.config.layer_types = ["sliding_attention"] * layers
    adapter_for(model)
    model.config.layer_types = ["full_attention"] * layers
    with pytest.raises(MisfitError, match=r"with layer_types=\['full_attention', "):
        adapter_for(model)


@pytest.mark.parametrize("shape", ["tiny-mistral", "tiny-qwen2", "tiny-gemma2", "tiny-phi3"])
def test_a_window_of_one_token_is_refused(shape):
    model = tiny(shape).model
    model.config.sliding_window = 1
    with pytest.raises(MisfitError, match="sliding_window=1 is not supported: expected at least 2"):
        adapter_for(model)


def test_every_supported_architecture_has_its_contract():
    for contract in (AdapterContract, LaRoSAContract):
        assert inheriting(contract) == set(SHAPES)
    assert {type(tiny(shape).model).__name__ for shape in SHAPES} == set(ADAPTERS)


def test_every_architecture_that_has_a_decode_plan_has_its_contract():
    planned = set()
    for shape in SHAPES:
        with engine_for(tiny(shape).model) as engine:
            if engine.decode_step.startswith("C++"):
                planned.add(shape)
    assert inheriting(PlanContract) == planned


def inheriting(contract: type[Any]) -> set[str]:
    """Return the shapes whose tests in this file inherit a contract."""
    return {test.shape for test in contract.__subclasses__() if test.__module__ == __name__}


def test_contract_models_cover_tied_and_untied_heads_and_grouped_queries():
    tests = [test for test in AdapterContract.__subclasses__() if test.__module__ == __name__]
    models = [tiny(test.shape).model for test in tests]
    assert {model.config.tie_word_embeddings for model in models} == {True, False}
    divided = [head_shape(model.config) for model in models]
    assert {shape.heads // shape.kv_heads for shape in divided} == {1, 2}
