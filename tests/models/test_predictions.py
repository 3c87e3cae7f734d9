"""What is no language model, or predicts nothing finite, is refused on every route."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import BertConfig, BertLMHeadModel, LogitsProcessorList, PreTrainedModel

import trimtab
from tests.conftest import tiny
from tests.generation.models import TOKENIZER, VARIANTS, model_of
from trimtab.errors import MisfitError, TrimtabError
from trimtab.models.predictions import require_predictions
from trimtab.models.sources import DType

TEXTS = [" ".join(f"word{(n * 7 + i * i) % 97}" for i in range(300)) for n in range(12)]
SMALL = trimtab.MeasureConfig(
    quality=trimtab.QualityConfig(
        windows=2, window_bytes=256, context_bytes=32, out_of_domain_windows=0
    ),
    generation=trimtab.GenerationConfig(prompts=2, prompt_bytes=32, new_tokens=4),
    serving=trimtab.ServingConfig(requests=[]),
)
STACKS = [[], [trimtab.VAttention()]]


@pytest.mark.parametrize("dtype", [DType.float32, DType.bfloat16])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_architecture_predicts_from_earlier_tokens(variant, dtype):
    require_predictions(model_of(variant, dtype), range(3, 40))


def test_a_text_of_one_token_says_nothing():
    require_predictions(model_of(), [5])


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
