import pytest
from torch import nn
from transformers import OPTConfig, OPTForCausalLM

from tests.conftest import SHAPES, tiny
from tests.models.contract import AdapterContract
from tests.models.larosa_contract import LaRoSAContract
from trimtab.errors import MisfitError
from trimtab.models.adapter import ADAPTERS, adapter_for, head_shape
from trimtab.models.shapes import shapes


class TestLlama(AdapterContract, LaRoSAContract):
    shape = "tiny-llama"


class TestMistral(AdapterContract, LaRoSAContract):
    shape = "tiny-mistral"


class TestQwen2(AdapterContract, LaRoSAContract):
    shape = "tiny-qwen2"


class TestQwen3(AdapterContract, LaRoSAContract):
    shape = "tiny-qwen3"


class TestGemma2(AdapterContract, LaRoSAContract):
    shape = "tiny-gemma2"


class TestGemma3(AdapterContract, LaRoSAContract):
    shape = "tiny-gemma3"


class TestPhi3(AdapterContract, LaRoSAContract):
    shape = "tiny-phi3"


class TestOPT(AdapterContract, LaRoSAContract):
    shape = "tiny-opt"


class TestGPT2(AdapterContract, LaRoSAContract):
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


def test_every_supported_architecture_has_its_contract():
    for contract in (AdapterContract, LaRoSAContract):
        tests = contract.__subclasses__()
        tested = {test.shape for test in tests if test.__module__ == __name__}
        assert tested == set(SHAPES)
        assert {type(tiny(shape).model).__name__ for shape in tested} == set(ADAPTERS)


def test_contract_models_cover_tied_and_untied_heads_and_grouped_queries():
    tests = [test for test in AdapterContract.__subclasses__() if test.__module__ == __name__]
    models = [tiny(test.shape).model for test in tests]
    assert {model.config.tie_word_embeddings for model in models} == {True, False}
    divided = [head_shape(model.config) for model in models]
    assert {shape.heads // shape.kv_heads for shape in divided} == {1, 2}
