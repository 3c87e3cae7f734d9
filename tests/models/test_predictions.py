"""What is no language model, or predicts nothing finite, is refused on every route."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BertConfig,
    BertLMHeadModel,
    LogitsProcessorList,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

import trimtab
from tests.conftest import tiny
from tests.generation.models import TOKENIZER, VARIANTS, model_of
from trimtab.errors import MisfitError, TrimtabError
from trimtab.models.predictions import require_cache, require_predictions
from trimtab.models.sources import DType

TEXTS = [" ".join(f"word{(n * 7 + i * i) % 97}" for i in range(300)) for n in range(12)]
SMALL = trimtab.MeasureConfig(
    quality=trimtab.QualityConfig(
        windows=2, window_bytes=256, context_bytes=32, out_of_domain_windows=0
    ),
    speed=trimtab.SpeedConfig(warmup=0, repeats=3, more_repeats=0, seconds=0),
    energy=trimtab.EnergyConfig(blocks=0),
    generation=trimtab.GenerationConfig(prompts=2, prompt_bytes=32, new_tokens=4),
    serving=trimtab.ServingConfig(requests=[]),
)
STACKS = [[], [trimtab.VAttention()]]
WIDTHS = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4}
SUPPORTED = "; supported: GPT2LMHeadModel, "


@pytest.mark.parametrize("dtype", [DType.float32, DType.bfloat16])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_architecture_predicts_from_earlier_tokens(variant, dtype):
    model = model_of(variant, dtype)
    require_predictions(model, range(3, 40))
    require_cache(model, range(3, 40))


def test_a_text_of_one_token_says_nothing():
    require_predictions(model_of(), [5])
    require_cache(model_of(), [])


def test_a_model_that_sees_later_tokens_is_not_measured():
    torch.manual_seed(0)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(vocab_size=320, intermediate_size=64, **size)
    model = BertLMHeadModel(config).eval().requires_grad_(False)
    with (
        pytest.raises(MisfitError, match="BertLMHeadModel sees later tokens"),
        trimtab.apply(model, TOKENIZER, []) as optimized,
    ):
        trimtab.measure(optimized, TEXTS, SMALL)


def other(kind: str, **settings: object) -> PreTrainedModel:
    """Return a tiny model of an architecture that no method supports."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, vocab_size=320, **settings)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
        ("mpt", {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 512}),
        ("gpt_neox", {**WIDTHS, "max_position_embeddings": 512}),
    ],
)
def test_the_unmodified_model_of_another_architecture_is_measured(kind, settings):
    with trimtab.apply(other(kind, **settings), TOKENIZER, []) as optimized:
        assert len(optimized.generate(["abc"], max_new_tokens=3)[0].tokens) == 3
        assert trimtab.measure(optimized, TEXTS, SMALL)["kv"]["live_bytes"] > 0


@pytest.mark.parametrize(
    ("kind", "settings", "cache"),
    [
        ("mamba", {"hidden_size": 32, "num_hidden_layers": 2}, "no past_key_values"),
        ("openai-gpt", GPT, "no past_key_values"),
        ("rwkv", {"hidden_size": 32, "num_hidden_layers": 2}, "no past_key_values"),
        (
            "lfm2",
            {**WIDTHS, "layer_types": ["conv", "full_attention"]},
            "LinearAttentionLayer in layer 0",
        ),
        ("gpt2", {**GPT, "add_cross_attention": True}, "EncoderDecoderCache"),
    ],
)
def test_a_model_without_keys_in_every_layer_generates_and_is_not_measured(kind, settings, cache):
    model = other(kind, **settings)
    message = f"{type(model).__name__} cannot be measured, .* it has {cache}{SUPPORTED}"
    with trimtab.apply(model, TOKENIZER, []) as optimized:
        assert len(optimized.generate(["abc"], max_new_tokens=3)[0].tokens) == 3
        with pytest.raises(MisfitError, match=message):
            trimtab.measure(optimized, TEXTS, SMALL)


def test_a_model_with_an_encoder_is_refused():
    size = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4}
    model = T5ForConditionalGeneration(T5Config(vocab_size=320, **size))
    for call in (
        lambda: trimtab.apply(model, TOKENIZER, []),
        lambda: trimtab.calibrate(model, TOKENIZER, trimtab.LaRoSA(), TEXTS),
    ):
        with pytest.raises(MisfitError, match="T5ForConditionalGeneration, which has an encoder: "):
            call()


def test_nothing_is_calibrated_on_a_model_that_sees_later_tokens():
    model = copy.deepcopy(model_of("gemma3"))
    model.config.use_bidirectional_attention = True
    with pytest.raises(MisfitError, match="Gemma3ForCausalLM sees later tokens"):
        trimtab.calibrate(model, TOKENIZER, trimtab.AdaptiVocab(mode="draft"), TEXTS)


@pytest.fixture
def damaged() -> PreTrainedModel:
    model = tiny().model
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    return model


@pytest.mark.parametrize("sampling", [None, trimtab.Sampling(temperature=1.0)])
@pytest.mark.parametrize("stack", STACKS, ids=["transformers", "engine"])
def test_nothing_is_generated_from_what_is_not_finite(damaged, stack, sampling):
    with (
        trimtab.apply(damaged, TOKENIZER, stack) as optimized,
        pytest.raises(TrimtabError, match=r"not finite: model\.layers\.1\.mlp\.up_proj\.weight ho"),
    ):
        optimized.generate(["abc"], max_new_tokens=3, sampling=sampling)


def test_nothing_is_drawn_from_what_a_processor_made_of_logits():
    def nothing(_: object, scores: torch.Tensor) -> torch.Tensor:
        return torch.full_like(scores, torch.nan)

    with (
        trimtab.Engine(model_of(), TOKENIZER, slots=1, max_len=32) as engine,
        pytest.raises(TrimtabError, match="nothing can be drawn"),
    ):
        engine.generate(
            ["abc"],
            max_new_tokens=3,
            sampling=trimtab.Sampling(temperature=1.0),
            logits_processors=lambda _: LogitsProcessorList([nothing]),
        )


def test_drafts_are_not_calibrated_for_a_damaged_model(damaged):
    with pytest.raises(TrimtabError, match=r"not finite: model\.layers\.1"):
        trimtab.calibrate(damaged, TOKENIZER, trimtab.AdaptiVocab(mode="draft"), TEXTS)
