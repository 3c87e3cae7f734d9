"""Attention for stock `generate`: our kernel where it applies, PyTorch's everywhere else."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from transformers import (
    Cache,
    DynamicCache,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    StaticCache,
)

from tests.conftest import drawn, tiny
from tests.vattention.conftest import in_child
from tests.vattention.generating import (
    MODELS,
    MODES,
    NEW,
    PAGE,
    PROMPT,
    assert_same,
    generate,
    make,
    model_of,
    prompts,
)
from trimtab.errors import MisfitError
from trimtab.models.sources import DType
from trimtab.vattention import attention, decode_kernel
from trimtab.vattention.attention import AttentionSpec, attend, using_attention
from trimtab_kernels import reference

HEADS, KV_HEADS, WIDTH, TOKENS = 4, 2, 8, 9
MODULE = SimpleNamespace(num_key_value_groups=HEADS // KV_HEADS, is_causal=True)
# Models with a window shorter than the prompts, in at least one layer.
SLIDING = {"tiny-gemma2", "tiny-gemma3", "window-mistral", "window-phi3", "window-qwen2"}


def equally_long(batch: int) -> Tensor:
    """Return prompts without padding."""
    return prompts(1).repeat(batch, 1) + torch.arange(batch)[:, None]


@pytest.fixture
def kernel_calls(monkeypatch) -> list[torch.Size]:
    """Return the shapes of the kernel's queries."""
    # Not a mock, which would keep the cache alive.
    shapes, kernel = [], attention.decode_attention

    def noting(query: Tensor, *others: object) -> Tensor:
        shapes.append(query.shape)
        return kernel(query, *others)

    monkeypatch.setattr(attention, "decode_attention", noting)
    return shapes


@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("masked", [None, torch.bool, torch.float32])
@pytest.mark.parametrize("queries", [1, TOKENS])
def test_attending_is_what_the_reference_does_token_by_token(queries, masked, softcap):
    rows, padding = 3, torch.tensor([2, 0, 4])
    query = drawn(rows, HEADS, queries, WIDTH)
    key, value = drawn(rows, KV_HEADS, TOKENS, WIDTH), drawn(rows, KV_HEADS, TOKENS, WIDTH) + 1
    ends = torch.arange(TOKENS - queries + 1, TOKENS + 1)
    mask = None
    if masked:
        place = torch.arange(TOKENS)
        mask = (place < ends[:, None]) & (place >= padding[:, None, None])
        mask = mask[:, None]
        if masked != torch.bool:
            mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(masked).min)
    found = attend(MODULE, query, key, value, mask, AttentionSpec(0.4, None, softcap))
    assert found.shape == (rows, queries, HEADS, WIDTH)
    # A later layer would write NaN into the cache.
    assert found.isfinite().all()
    for row in range(rows):
        first = int(padding[row]) if masked else 0
        for index, end in enumerate(ends.tolist()):
            if end <= first:
                continue
            seen = [part[row, :, first:end].transpose(0, 1)[None] for part in (key, value)]
            length = torch.tensor([end - first], dtype=torch.int32)
            expected = reference.decode_attention(
                query[row, :, index][None], *seen, length, 0.4, None, softcap
            )
            torch.testing.assert_close(found[row, index], expected[0])


@pytest.mark.parametrize("mode", ["greedy", *MODES])
@pytest.mark.parametrize("name", MODELS)
def test_stock_generate_with_the_kernel_yields_the_same(name, mode, kernel_calls):
    model, options = copy.deepcopy(model_of(name)), MODES.get(mode, {})
    before = model.config._attn_implementation
    ids = equally_long(1 if mode == "prompt lookup" else 2)
    expected = generate(model, ids, **options)
    with make(model, 6) as cache, decode_kernel(model):
        assert_same(generate(model, ids, cache, **options), expected)
    assert model.config._attn_implementation == before
    if mode == "greedy":
        # Layers with a full window have a mask.
        windows = [getattr(layer, "_window", None) for layer in cache.layers]
        assert any(windows) == (name in SLIDING)
        assert len(kernel_calls) == (NEW - 1) * windows.count(None)
    elif mode != "prompt lookup":
        assert bool(kernel_calls) == (None in [layer._window for layer in cache.layers])


def test_a_padded_batch_uses_pytorchs_attention(kernel_calls):
    model = copy.deepcopy(model_of("tiny-llama"))
    ids = prompts(3)
    expected = generate(model, ids)
    with make(model, 3) as cache, decode_kernel(model):
        assert_same(generate(model, ids, cache), expected)
    assert not kernel_calls


def test_padding_under_a_soft_cap_changes_nothing():
    model = copy.deepcopy(model_of("tiny-gemma2"))
    ids = prompts(3)
    expected = generate(model, ids)
    with make(model, 3) as cache, decode_kernel(model):
        assert_same(generate(model, ids, cache), expected)


def test_the_kernel_reads_a_dynamic_cache_too(kernel_calls):
    model = copy.deepcopy(model_of("tiny-qwen3"))
    ids = equally_long(2)
    expected = generate(model, ids)
    with decode_kernel(model):
        assert_same(generate(model, ids, DynamicCache(config=model.config)), expected)
    assert len(kernel_calls) == (NEW - 1) * model.config.num_hidden_layers


@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_cache_yields_what_eager_attention_does(name):
    model = copy.deepcopy(model_of(name))
    for ids in (equally_long(2), prompts(2)):
        with using_attention(model, "eager"):
            expected = generate(model, ids)
        for cache in (
            DynamicCache(config=model.config),
            DynamicCache(),
            StaticCache(config=model.config, max_cache_len=64),
        ):
            with decode_kernel(model):
                assert_same(generate(model, ids, cache, disable_compile=True), expected)


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gemma2", "tiny-gemma3", "window-mistral"])
def test_a_static_cache_is_right_without_an_attention_mask_too(name):
    model, ids = copy.deepcopy(model_of(name)), prompts(1)

    def passes(cache: Cache) -> Tensor:
        parts = ids[:, :12], ids[:, 12:13], ids[:, 13:14], ids[:, 14:]
        return torch.cat([model(part, past_key_values=cache).logits for part in parts], dim=1)

    with using_attention(model, "eager"):
        expected = passes(DynamicCache(config=model.config))
    with decode_kernel(model):
        found = passes(StaticCache(config=model.config, max_cache_len=40))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_bfloat16_logits_are_close():
    model = copy.deepcopy(tiny(dtype=DType.bfloat16).model)
    ids = equally_long(2)
    expected = generate(model, ids, max_new_tokens=2)
    with make(model, 2) as cache, decode_kernel(model):
        found = generate(model, ids, cache, max_new_tokens=2)
    for ours, theirs in zip(found.logits, expected.logits, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.05)


def test_the_kernel_reads_nothing_beyond_the_last_token():
    """No memory follows a last page that is full."""
    model = copy.deepcopy(model_of("tiny-llama"))

    def fill_pages() -> None:
        cache = make(model, 2, 512)
        tokens = 2 * PAGE // cache.kv.row_bytes
        with decode_kernel(model):
            generate(model, equally_long(2), cache, min_new_tokens=tokens - PROMPT + 1)
        assert cache.get_seq_length() * cache.kv.row_bytes == 2 * PAGE

    assert in_child(fill_pages) == 0


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gemma2", "tiny-gpt2", "tiny-opt"])
def test_attention_weights_that_it_has_not_are_refused(name):
    """Transformers would return empty tuples."""
    model = copy.deepcopy(model_of(name))
    with pytest.raises(MisfitError, match="no attention weights to return"), decode_kernel(model):
        generate(model, equally_long(1), output_attentions=True)
    model.set_attn_implementation("eager")
    model.config.output_attentions = True
    with pytest.raises(MisfitError, match="no attention weights to return"), decode_kernel(model):
        generate(model, equally_long(1))


@pytest.mark.parametrize("where", ["config", "keyword"])
@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gemma2", "tiny-gemma3", "tiny-gpt2"])
def test_later_tokens_are_seen_on_a_virtual_cache_and_refused_by_the_kernel(name, where):
    model, ids = copy.deepcopy(model_of(name)), prompts(1)
    causal = model(ids).logits
    given = {}
    if where == "config":
        model.config.is_causal = False
    else:
        given["is_causal"] = False

    def passes(cache: Cache) -> Tensor:
        parts = ids[:, :12], ids[:, 12:13], ids[:, 13:]
        return torch.cat(
            [model(part, past_key_values=cache, **given).logits for part in parts], dim=1
        )

    expected = passes(DynamicCache(config=model.config))
    assert (expected - causal).abs().max() > 0.01
    with make(model, 1) as cache:
        torch.testing.assert_close(passes(cache), expected, rtol=0, atol=0)
    with decode_kernel(model), pytest.raises(MisfitError, match=r"later tokens \(is_causal=False"):
        model(ids, **given)
    model.config.is_causal = True
    with decode_kernel(model):
        torch.testing.assert_close(model(ids, is_causal=True).logits, causal, rtol=1e-4, atol=1e-5)


def test_after_an_error_the_model_has_its_own_attention_again():
    model = copy.deepcopy(model_of("tiny-llama"))
    before = model.config._attn_implementation
    with pytest.raises(MisfitError, match="dropout"), decode_kernel(model):
        model.train()
        model.config.attention_dropout = 0.5
        for layer in model.model.layers:
            layer.self_attn.attention_dropout = 0.5
        generate(model, equally_long(1))
    assert model.config._attn_implementation == before


@pytest.mark.parametrize("text", ["eager", "sdpa"])
def test_every_config_of_a_model_has_its_own_attention_again(text, kernel_calls):
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    model = Gemma3ForConditionalGeneration(
        Gemma3Config(
            text_config={**size, "num_attention_heads": 2, "num_key_value_heads": 1,
                         "head_dim": 8, "vocab_size": 300},
            vision_config={**size, "num_attention_heads": 2, "image_size": 28, "patch_size": 14},
            mm_tokens_per_image=4, image_token_index=299, boi_token_index=298,
            eoi_token_index=297,
        )
    ).eval()  # fmt: skip
    model.set_attn_implementation({"text_config": text, "vision_config": "sdpa"})
    configs = model.config, model.config.text_config, model.config.vision_config

    def selected() -> list[str]:
        return [config._attn_implementation for config in configs]

    before = selected()
    assert before[1:] == [text, "sdpa"]
    first, second = decode_kernel(model), decode_kernel(model)
    first.__enter__()
    with torch.no_grad():
        model(torch.tensor([[5]]))
    assert kernel_calls
    second.__enter__()
    first.__exit__(None, None, None)
    assert selected() == [attention.NAME] * 3
    second.__exit__(None, None, None)
    assert selected() == before


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gemma2", "tiny-gemma3"])
def test_on_a_gpu_as_without_it(name):
    model = copy.deepcopy(model_of(name)).to("cuda")
    ids = equally_long(2).to("cuda")
    expected = generate(model, ids)
    with make(model, 2) as cache, decode_kernel(model):
        found = generate(model, ids, cache)
    for ours, theirs in zip(found.logits[:2], expected.logits[:2], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-2)
