"""What is told from a config alone."""

from __future__ import annotations

import sys

import pytest
from transformers import (
    BloomConfig,
    Gemma2Config,
    Gemma3Config,
    LlamaConfig,
    MptConfig,
    Phi3Config,
    RwkvConfig,
    XLNetConfig,
)

from tests.conftest import SHAPES, tiny
from trimtab.errors import MisfitError
from trimtab.models.adapter import ADAPTERS, head_shape
from trimtab.models.facts import CacheShape, final_softcap, longest_text
from trimtab.models.sites import SITE_TITLES


def test_only_gemma_2_bounds_its_logits():
    assert final_softcap(Gemma2Config(final_logit_softcapping=30.0)) == 30
    assert final_softcap(Gemma2Config(final_logit_softcapping=None)) is None
    assert final_softcap(LlamaConfig()) is None


@pytest.mark.parametrize(
    ("config", "longest"),
    [
        (LlamaConfig(max_position_embeddings=512), 512),
        (
            Phi3Config(
                hidden_size=64, num_attention_heads=4, max_position_embeddings=4096,
                original_max_position_embeddings=256, rope_parameters={
                    "rope_type": "longrope", "rope_theta": 1e4,
                    "original_max_position_embeddings": 256,
                    "short_factor": [1.0] * 8, "long_factor": [2.0] * 8,
                },
            ),
            256,
        ),
        (BloomConfig(), sys.maxsize),
        (XLNetConfig(), sys.maxsize),
        (MptConfig(max_seq_len=512), 512),
        (Gemma3Config(text_config={"max_position_embeddings": 512}), 512),
    ],
    ids=["plain", "longrope", "alibi", "relative", "alibi's table", "within another"],
)  # fmt: skip
def test_texts_are_as_long_as_their_positions_do_not_depend_on_others(config, longest):
    assert longest_text(config) == longest


@pytest.mark.parametrize("name", SHAPES)
def test_every_supported_architecture_keeps_keys_and_values_of_one_shape(name):
    config = tiny(name).model.config
    found, heads = CacheShape.of(config), head_shape(config)
    assert (found.kv_heads, found.head_dim) == (heads.kv_heads, heads.head_dim)
    kinds = getattr(config, "layer_types", None) or [None] * config.num_hidden_layers
    window = getattr(config, "sliding_window", None)
    sliding = [kind == "sliding_attention" for kind in kinds]
    if not getattr(config, "layer_types", None) and window:
        sliding = [True] * config.num_hidden_layers
    assert found.windows == tuple(window if one else None for one in sliding)


def test_a_model_without_attention_heads_has_no_virtual_cache():
    with pytest.raises(MisfitError, match="RwkvConfig is not supported by the virtual cache: its"):
        CacheShape.of(RwkvConfig())


def test_sites_are_in_the_order_of_the_forward_pass_and_have_titles():
    for adapter in ADAPTERS.values():
        assert [site.name for site in adapter.sites] == list(SITE_TITLES)
        assert adapter.sites.attention_output.title == "attention output"
        assert [site.norm is None for site in adapter.sites] == [False, True, False, True]
