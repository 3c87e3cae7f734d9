import pytest
from torch import nn

from tests.models.contract import AdapterContract
from toolkit.errors import MisfitError
from toolkit.models import adapter_for
from toolkit.models.adapter import ADAPTERS


class TestLlama(AdapterContract):
    shape = "tiny-llama"


class TestMistral(AdapterContract):
    shape = "tiny-mistral"


class TestQwen2(AdapterContract):
    shape = "tiny-qwen2"


class TestQwen3(AdapterContract):
    shape = "tiny-qwen3"


class TestGPT2(AdapterContract):
    shape = "tiny-gpt2"


def test_an_unsupported_architecture_is_refused_by_name_with_the_supported_ones():
    class NovelForCausalLM(nn.Module):
        pass

    with pytest.raises(MisfitError, match="NovelForCausalLM is not supported") as error:
        adapter_for(NovelForCausalLM())
    assert all(name in str(error.value) for name in ADAPTERS)


def test_every_supported_architecture_has_its_contract():
    from tests.conftest import tiny
    from toolkit.models.random import shapes

    tested = {type(tiny(test.shape).model).__name__ for test in AdapterContract.__subclasses__()}
    assert tested == set(ADAPTERS)
    assert {test.shape for test in AdapterContract.__subclasses__()} == {
        name for name in shapes() if name.startswith("tiny-")
    }


def test_contract_models_cover_tied_and_untied_heads_and_grouped_queries():
    from tests.conftest import tiny

    configs = [tiny(test.shape).model.config for test in AdapterContract.__subclasses__()]
    assert {config.tie_word_embeddings for config in configs} == {True, False}
    heads = {c.num_attention_heads // getattr(c, "num_key_value_heads", 4) for c in configs}
    assert heads == {1, 2}
