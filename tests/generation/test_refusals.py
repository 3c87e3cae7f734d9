"""What an engine refuses before anything runs, and what it says."""

from __future__ import annotations

import re

import numpy as np
import pandas
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LogitsProcessorList

from tests.generation.models import engine_for, model_of, prompts_of, stock
from tests.generation.toys import Guesses
from trimtab.errors import ConfigError, MisfitError, TrimtabError
from trimtab.generation.limits import capacity
from trimtab.models.facts import longest_text
from trimtab.models.sources import DType
from trimtab.vattention.layout import Geometry, committed_bytes
from trimtab.vattention.settings import CacheSettings, Layout

PROMPTS = prompts_of(5, 9)
NUMBERED = pandas.DataFrame([[5]])  # its column is named 0


@pytest.mark.parametrize(
    ("prompts", "settings", "message"),
    [
        (["a", ""], {}, "prompt 1 has no tokens"),
        (
            prompts_of(3, 24),
            {},
            "prompt 1 has 24 tokens: max_len allows 24, including at least one generated token; "
            "raise max_len, or shorten the prompt",
        ),
        ("ab", {}, "prompts='ab': expected several"),
        ([1, 2], {}, "prompt 1: expected a text or token ids"),
        ([["a"]], {}, r"prompt \['a'\]: expected a text or token ids"),
        ([[True, False]], {}, r"prompt \[True, False\]: expected a text or token ids"),
        (torch.ones(1, 2, dtype=torch.bool), {}, r"prompt tensor.*: expected a text or token ids"),
        (torch.tensor(3), {}, "prompts is a Tensor: expected a list of texts"),
        ([[1], [2, 320]], {}, "prompt 1 has the token 320: expected ids from 0 to 319"),
        ([[-1]], {}, "prompt 0 has the token -1"),
        (["a"], {"max_new_tokens": 5.0}, "max_new_tokens=5.0: expected integers"),
        (["a"], {"max_new_tokens": "5"}, "max_new_tokens='5': expected integers"),
        (["a"], {"max_new_tokens": 0}, "max_new_tokens=0: expected integers of at least 1"),
        (["a"], {"max_new_tokens": [1, 2]}, "max_new_tokens=.*for each of the 1 prompts"),
        (["a"], {"max_new_tokens": {0: 4}}, r"max_new_tokens=\{0: 4\}: expected integers"),
        (["a"], {"max_new_tokens": True}, "max_new_tokens=True: expected integers"),
        (["a"], {"max_new_tokens": [True]}, r"max_new_tokens=\[True\]: expected integers"),
        (["a"], {"max_new_tokens": torch.tensor(True)}, r"max_new_tokens=tensor\(True\): exp"),
        (["a"], {"max_new_tokens": torch.tensor(1.0)}, r"max_new_tokens=tensor\(1\.\): expected"),
        (["a"], {"max_new_tokens": torch.ones(1)}, r"max_new_tokens=tensor\(\[1\.\]\): expected"),
        (["a"], {"max_new_tokens": NUMBERED}, r"max_new_tokens=.{1,60}: expected integers"),
        (["a"], {"stop": NUMBERED.columns.to_frame()}, "stop=.{1,60}: expected a sequence of str"),
        (["a"], {"stop": [""]}, "stop=.*none empty"),
        (["a"], {"stop": "no"}, "stop='no': expected a sequence of strings"),
        (["a"], {"stop": None}, "stop=None: expected a sequence of strings"),
        (["a"], {"stop": [5]}, r"stop=\[5\]: expected a sequence of strings"),
        (["a"], {"sampling": {"temperature": 1.0}}, "sampling=.*: expected a Sampling, such as"),
        (
            ["a"],
            {"logits_processors": LogitsProcessorList()},
            r"logits_processors=\[\]: expected a function, called with the index of a prompt",
        ),
        (["a"], {"logits_processors": [print]}, "logits_processors=.*: expected a function"),
        (["a"], {"on_token": "print"}, "on_token='print': expected a function"),
        (["a"], {"given": {"input_ids": [[1]]}}, "given=.*: expected the token ids of a text"),
        (["a"], {"given": NUMBERED}, "given=.{1,60}: expected the token ids of a text"),
        (["a"], {"given": [NUMBERED]}, "given=.{1,60}: expected token ids"),
        (["a"], {"given": [["b"]]}, r"given=\['b'\]: expected token ids"),
        (["a"], {"given": [[320]]}, "given: token 320; expected 0 to 319"),
        (["a"], {"given": torch.ones(2, 2)}, "given=tensor.*: expected token ids"),
        (["a\ud800"], {}, "prompt 'a.*: no text, surrogates not allowed"),
    ],
)
def test_arguments(prompts, settings, message):
    with engine_for(model_of(), max_len=24) as engine:
        with pytest.raises(TrimtabError, match=message):
            engine.generate(prompts, **{"max_new_tokens": 4, **settings})
        assert engine.stats.prefill_steps == 0
        assert engine.kv.stats().committed == 0


@pytest.mark.parametrize("limit", [torch.tensor(2), torch.tensor([2]), np.int64(2), np.array([2])])
def test_limits_may_be_held_by_tensors_and_arrays(limit):
    with engine_for(model_of()) as engine:
        assert len(engine.generate(["a"], max_new_tokens=limit)[0].tokens) == 2


@pytest.mark.parametrize(
    ("prompt", "text", "message"),
    [
        ("ab", [1], "prompt='ab': expected token ids"),
        ([1], {"input_ids": [1]}, "text={'input_ids': .*: expected token ids"),
        ([1.5], [1], r"prompt=\[1.5\]: expected token ids"),
        (None, [1], "prompt=None: expected token ids"),
        ([320], [1], "prompt: token 320; expected 0 to 319, the model's tokens"),
        ([1], [2, -1, 3], "text: token -1; expected 0 to 319"),
    ],
)
def test_logits_are_of_known_tokens(prompt, text, message):
    with engine_for(model_of()) as engine:
        with pytest.raises(TrimtabError, match=message):
            engine.logits(prompt, text)
        given = torch.tensor([1, 2]), torch.tensor([3, 4])
        assert torch.equal(engine.logits(*given), engine.logits([1, 2], [3, 4]))


def test_a_prompt_that_the_budget_cannot_hold():
    budget = 6 * 4096  # one page row: 32 tokens
    with engine_for(model_of(), budget=budget) as engine:
        engine.generate(prompts_of(31), max_new_tokens=1)
        message = (
            "prompt 1 has 32 tokens: the budget of the KV cache allows 32, including at least one "
            "generated token; raise the budget, or shorten the prompt"
        )
        with pytest.raises(TrimtabError, match=message):
            engine.generate(prompts_of(3, 32), max_new_tokens=1)


def test_an_engine_that_drafts_without_room_refuses_prompts():
    with engine_for(model_of(), budget=4096, drafter=Guesses(0, 3)) as engine:
        assert engine.capacity == 0
        with pytest.raises(TrimtabError, match="the budget of the KV cache allows 0"):
            engine.generate(prompts_of(3), max_new_tokens=1)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"max_len": 2048}, "the model's positions"),
        ({"max_len": 24}, "max_len"),
        ({"max_len": 2048, "budget": 6 * 4096}, "the budget"),
    ],
)
def test_what_is_too_long_is_told_of_what_can_be_changed(settings, told):
    with engine_for(model_of(), slots=1, **settings) as engine:
        for call in (
            lambda: engine.generate([[1] * 2049], max_new_tokens=1),
            lambda: engine.logits([1] * 1025, [1] * 1025),
        ):
            with pytest.raises(TrimtabError) as refused:
                call()
            assert told in str(refused.value)
            assert ("max_len" in str(refused.value)) == (told == "max_len")
            assert ("budget" in str(refused.value)) == (told == "the budget")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        *(
            ({name: value}, f"{name}={value!r}: expected a whole number of at least 1")
            for name in ("slots", "max_len")
            for value in (0, -1, 2.0, "2", True, None)
        ),
        ({"max_len": 10**30}, f"max_len={10**30}: LlamaForCausalLM has positions for 2048"),
        ({"drafter": "ngrams"}, r"drafter='ngrams': expected a trimtab\.capabilities\.Drafter"),
        ({"drafter": CacheSettings()}, r"drafter=CacheSettings\(.*: expected a trimtab"),
        ({"output_tokenizer": "gpt2"}, "output_tokenizer='gpt2': expected a tokenizer of"),
    ],
)
def test_what_engines_are_made_of(settings, message):
    with pytest.raises(TrimtabError, match=message):
        engine_for(model_of(), **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"page_group": 1000}, "pages of 1000 bytes; expected"),
        ({"slots": 2**40}, "no KV cache for this engine: slots=1099511627776 with max_len=128"),
    ],
)
def test_a_cache_that_cannot_be_made(settings, message):
    model = model_of()
    before = model.config._attn_implementation
    with pytest.raises(TrimtabError, match=message), engine_for(model, **settings):
        pass
    assert model.config._attn_implementation == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layout": "other"}, "vattention.layout=other: expected null or slot or mega"),
        ({"prefill_chunk": 0}, "vattention.prefill_chunk=0: expected at least 1 token"),
        ({"page_group": 0}, "vattention.page_group=0: expected null or at least 1 byte"),
        ({"budget": 0.5}, "vattention.budget=0.5: expected null or a whole number"),
    ],
)
def test_cache_settings_out_of_range(settings, message):
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        CacheSettings(**settings)


def test_a_dtype_that_the_cache_does_not_hold():
    with pytest.raises(TrimtabError, match=r"dtype=torch\.float64; expected one of"):
        engine_for(model_of(dtype=DType.float64)).__enter__()


def test_a_length_beyond_the_models_positions():
    with pytest.raises(TrimtabError, match="max_len=4096: LlamaForCausalLM has positions for 2048"):
        engine_for(model_of(), max_len=4096)


def test_models_that_are_not_supported():
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = AutoConfig.for_model("gpt_neox", vocab_size=64, intermediate_size=16, **sizes)
    with pytest.raises(MisfitError, match="GPTNeoXForCausalLM is not supported; supported: GPT2"):
        engine_for(AutoModelForCausalLM.from_config(config))
    with pytest.raises(MisfitError, match="training mode"):
        engine_for(model_of().train())
    spread = model_of()
    spread.model.layers[1].to("meta")
    with pytest.raises(MisfitError, match="lies on 2 devices"):
        engine_for(spread)


def test_long_rope_ends_at_its_original_length():
    """Beyond it, one long text would change the frequencies of every text in the batch."""
    assert longest_text(model_of("phi3").config) == 1024
    assert longest_text(model_of("gemma3").config) == 2048
    assert longest_text(model_of("gpt2").config) == 2048


@pytest.mark.parametrize("layout", list(Layout))
@pytest.mark.parametrize("budget", [0, 100_000, 123_456, 10**9])
def test_capacity_is_the_most_tokens_whose_pages_the_budget_holds(budget, layout):
    geometry = Geometry(3, 2, 500, 3, 24, torch.float32, layout)
    fits = [length for length in range(501) if committed_bytes([length], geometry, 4096) <= budget]
    assert capacity(geometry, 4096, budget) == max(fits)
    assert capacity(geometry, 4096, None) == 500


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda layers: layers.__delitem__(0), "2 layers has layer_idx=[1, 2]: expected 0 to 1"),
        (lambda layers: layers.__delitem__(1), "2 layers has layer_idx=[0, 2]: expected 0 to 1"),
        (lambda layers: layers.append(layers[1]), "4 layers has layer_idx=[0, 1, 2, 1]"),
    ],
)
def test_layers_without_a_cache_of_their_own_are_refused(change, found):
    model = model_of()
    change(model.model.layers)
    with pytest.raises(MisfitError, match=re.escape(found)):
        engine_for(model)


def test_fewer_layers_than_the_config_has_are_run():
    model = model_of()
    del model.model.layers[-1]
    with engine_for(model) as engine:
        found = [one.tokens for one in engine.generate(PROMPTS, max_new_tokens=6)]
    assert found == [stock(model, prompt, 6) for prompt in PROMPTS]
