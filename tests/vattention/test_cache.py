"""The virtual cache under stock `generate`, compared with a DynamicCache."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import re
import signal
import sys
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import count, product
from unittest.mock import patch

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import (
    BartConfig,
    DeepseekV3Config,
    DynamicCache,
    Gemma3nTextConfig,
    Gemma4TextConfig,
    GPT2Config,
    Lfm2Config,
)

from tests.conftest import random_inputs, tiny
from tests.vattention.conftest import in_child
from tests.vattention.generating import (
    ATTENTIONS,
    MODELS,
    MODES,
    NEW,
    PAGE,
    PROMPT,
    RARE_MODES,
    WINDOWED,
    assert_same,
    generate,
    make,
    model_of,
    prompts,
)
from trimtab.errors import MisfitError, TrimtabError
from trimtab.models.loading import load_model
from trimtab.models.sources import DType, RandomModel
from trimtab.vattention.cache import VirtualCache
from trimtab.vattention.cache_layer import VirtualLayer
from trimtab.vattention.lookahead import LookAhead
from trimtab.vattention.pages import KVOutOfMemory
from trimtab.vattention.settings import Layout
from trimtab.vattention.virtual_kv import VirtualKV


@pytest.mark.parametrize("layout", list(Layout))
@pytest.mark.parametrize(("name", "attention"), ATTENTIONS)
def test_a_padded_batch_generates_as_on_a_dynamic_cache(name, attention, layout):
    model = copy.deepcopy(model_of(name))
    model.set_attn_implementation(attention)
    ids = prompts(3)
    with make(model, 3, layout=layout) as cache:
        assert_same(generate(model, ids, cache), generate(model, ids))
        assert cache.get_seq_length() == PROMPT + NEW - 1
        assert cache.kv.stats().growths > 1


@pytest.mark.parametrize(
    ("name", "mode"),
    [*product(MODELS, MODES), *product(["tiny-llama", "tiny-gemma3"], RARE_MODES)],
)
def test_every_mode_generates_as_on_a_dynamic_cache(name, mode):
    model, options = model_of(name), (MODES | RARE_MODES)[mode]
    ids = prompts(1 if mode == "prompt lookup" else 2)
    with make(model, 6) as cache:
        assert_same(generate(model, ids, cache, **options), generate(model, ids, **options))


@pytest.mark.parametrize("name", MODELS)
def test_drafts_of_an_assistant_are_accepted_and_rejected(name):
    model = model_of(name)
    # The model itself, changed to be wrong at every third token.
    assistant, calls = copy.deepcopy(model), count()
    assistant.generation_config.assistant_confidence_threshold = 0.0
    assistant.get_output_embeddings().register_forward_hook(
        lambda module, inputs, logits: logits.roll(next(calls) % 3 // 2, dims=-1)
    )
    ids = prompts(1)
    expected = generate(model, ids, assistant_model=assistant)
    with make(model) as cache, patch.object(cache, "crop", wraps=cache.crop) as crop:
        assert_same(generate(model, ids, cache, assistant_model=assistant), expected)
        rejected = [-call.args[0] for call in crop.call_args_list]
    assert max(rejected) > 0, "no draft was rejected"
    assert len(rejected) < NEW - 1, "no draft was accepted"


@pytest.mark.parametrize("name", MODELS)
def test_a_finished_generation_is_continued(name):
    model = model_of(name)
    ids, more = prompts(2), random_inputs(2, 5) + 1
    with make(model, 2) as cache:
        for _ in range(2):
            dynamic = DynamicCache(config=model.config)
            cache.reset()
            first = generate(model, ids, dynamic, eos_token_id=None)
            assert_same(generate(model, ids, cache, eos_token_id=None), first)
            longer = torch.cat([first.sequences, more], dim=1)
            expected = generate(model, longer, dynamic, eos_token_id=None)
            assert_same(generate(model, longer, cache, eos_token_id=None), expected)


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gemma3"])
def test_a_text_of_which_no_token_is_left_in_a_cache_that_is_not_reset_is_refused(name):
    model, ids = model_of(name), prompts(1)
    with make(model) as cache:
        first = generate(model, ids, cache)
        with pytest.raises(TrimtabError, match=r"holds \d+ tokens of an earlier .* call reset\(\)"):
            generate(model, ids[:, -10:], cache)
        cache.reset()
        assert_same(generate(model, ids, cache), first)


def test_bfloat16_as_in_a_dynamic_cache():
    model = tiny(dtype=DType.bfloat16).model
    ids = prompts(2)
    with make(model, 2) as cache:
        found, expected = generate(model, ids, cache), generate(model, ids)
    torch.testing.assert_close(found.sequences, expected.sequences)


def test_a_forward_pass_under_no_grad_continues_one_under_inference_mode():
    model = model_of("tiny-llama")
    ids = prompts(1)
    expected = model(ids).logits[:, 10:]
    with torch.inference_mode():
        made = make(model)
    with made as cache:
        with torch.inference_mode():
            model(ids[:, :5], past_key_values=cache)
        with torch.no_grad():
            model(ids[:, 5:10], past_key_values=cache)
        with torch.inference_mode():
            found = model(ids[:, 10:], past_key_values=cache).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


# The layers themselves


def states(cache: VirtualCache, rows: int, tokens: int, seed: int) -> tuple[torch.Tensor, ...]:
    geometry = cache.kv.geometry
    generator = torch.Generator().manual_seed(seed)
    shape = geometry.layers, rows, geometry.kv_heads, tokens, geometry.head_dim
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


class Twins:
    """A virtual and a dynamic cache with the same contents, compared after every step."""

    def __init__(self, virtual: VirtualCache, rows: int) -> None:
        self.virtual, self.dynamic, self.rows = virtual, DynamicCache(), rows
        self.capacity, self.max_len = virtual.kv.geometry.slots, virtual.kv.geometry.max_len
        self.steps = 0

    def step(self, name: str, argument) -> None:
        self.steps += 1
        getattr(self, name)(argument)
        length = self.dynamic.get_seq_length()
        lengths = [length] * self.rows + [0] * (self.capacity - self.rows)
        assert self.virtual.kv.lengths.tolist() == lengths
        for ours, theirs in zip(self.virtual.layers, self.dynamic.layers, strict=False):
            assert ours.get_seq_length() == length
            if length:
                assert torch.equal(ours.keys, theirs.keys)
                assert torch.equal(ours.values, theirs.values)

    def update(self, tokens: int) -> None:
        length = self.dynamic.get_seq_length()
        tokens = min(tokens, self.max_len - length)
        if not tokens:
            return
        sizes = [layer.get_mask_sizes(tokens) for layer in self.virtual.layers]
        pairs = zip(*states(self.virtual, self.rows, tokens, self.steps), strict=True)
        for index, pair in enumerate(pairs):
            seen, offset = sizes[index]
            assert offset + seen == length + tokens
            whole = self.dynamic.update(*pair, index)
            shown = self.virtual.update(*pair, index)
            for found, expected in zip(shown, whole, strict=True):
                assert torch.equal(found, expected[:, :, offset:])

    def crop(self, tokens: int) -> None:
        self.virtual.crop(tokens)
        self.dynamic.crop(tokens)

    def reset(self, rows: int) -> None:
        self.virtual.reset()
        self.dynamic, self.rows = DynamicCache(), rows

    def reorder(self, order: list[int]) -> None:
        order = [order[row] % self.rows for row in range(self.rows)]
        self.virtual.reorder_cache(torch.tensor(order))
        self.dynamic.reorder_cache(torch.tensor(order))

    def repeat(self, repeats: int) -> None:
        repeats = min(repeats, self.capacity // self.rows)
        self.virtual.batch_repeat_interleave(repeats)
        self.dynamic.batch_repeat_interleave(repeats)
        if self.dynamic.get_seq_length():
            self.rows *= repeats

    def select(self, order: list[int]) -> None:
        order = [row % self.rows for row in order]
        self.virtual.batch_select_indices(torch.tensor(order))
        self.dynamic.batch_select_indices(torch.tensor(order))
        if self.dynamic.get_seq_length():
            self.rows = len(order)


NUMBERS = st.lists(st.integers(0, 5), min_size=6, max_size=6)
STEPS = st.one_of(
    st.tuples(st.just("update"), st.integers(1, 20)),
    st.tuples(st.just("crop"), st.integers(-30, 0)),
    st.tuples(st.just("reset"), st.integers(1, 6)),
    st.tuples(st.just("reorder"), NUMBERS),
    st.tuples(st.just("repeat"), st.integers(1, 3)),
    st.tuples(st.just("select"), st.lists(st.integers(0, 5), min_size=1, max_size=6)),
)


@settings(max_examples=60)
@example(
    steps=[("update", 7), ("repeat", 3), ("reorder", [5, 4, 3, 2, 1, 0]), ("select", [1, 4]),
           ("update", 20), ("crop", -3), ("update", 1), ("reset", 3), ("update", 2)],
    layout=Layout.slot,
    name="tiny-llama",
)  # fmt: skip
@given(
    steps=st.lists(STEPS, max_size=15),
    layout=st.sampled_from(list(Layout)),
    name=st.sampled_from(["tiny-llama", "tiny-gemma3"]),
)
def test_any_series_of_steps_holds_what_a_dynamic_cache_holds(steps, layout, name):
    with make(model_of(name), 6, layout=layout) as cache:
        twins = Twins(cache, 2)
        for step, argument in steps:
            twins.step(step, argument)


@pytest.mark.parametrize("name", ["tiny-gemma2", "tiny-gemma3", *WINDOWED])
def test_windows_are_those_of_transformers_own_sliding_layers(name):
    model = model_of(name)
    dynamic = DynamicCache(config=model.config)
    with make(model, 1) as cache:
        assert cache.is_sliding == dynamic.is_sliding
        assert any(cache.is_sliding)
        for seed, tokens in enumerate([3, 1, 3, 1, 1, 12, 1, 2]):
            for index, pair in enumerate(zip(*states(cache, 1, tokens, seed), strict=True)):
                sizes = [each.get_mask_sizes(tokens, index) for each in (cache, dynamic)]
                assert sizes[0] == sizes[1]
                shown, expected = (each.update(*pair, index) for each in (cache, dynamic))
                assert all(map(torch.equal, shown, expected))
                del shown


def test_growth_moves_nothing_and_writes_new_tokens_only():
    with make(model_of("tiny-llama"), 2) as cache:
        addresses = set()
        for seed in range(90):
            for index, pair in enumerate(zip(*states(cache, 2, 1, seed), strict=True)):
                cache.update(*pair, index)
            layer = cache.layers[1]
            addresses.add((layer.keys.data_ptr(), layer.values.data_ptr()))
            # Changed directly: if the cache wrote it again, the change would be lost.
            layer.keys[:, :, -1], layer.values[:, :, -1] = seed, -seed
        assert cache.kv.stats().growths > 2
        assert len(addresses) == 1
        written = torch.arange(90.0)[:, None].expand_as(layer.keys)
        assert torch.equal(layer.keys, written)
        assert torch.equal(layer.values, -written)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_what_recycled_pages_hold_changes_nothing(attention):
    model = copy.deepcopy(model_of("tiny-llama"))
    model.set_attn_implementation(attention)
    ids = prompts(2)
    with make(model, 6) as cache:
        generate(model, prompts(6), cache, max_new_tokens=64)
        for layer in cache.layers:
            layer.keys.fill_(torch.nan)
            layer.values.fill_(torch.nan)
        cache.reset()
        growths = cache.kv.stats().growths
        for options in ({}, {"num_beams": 3}, {"prompt_lookup_num_tokens": 4}):
            some = ids[1:] if "prompt_lookup_num_tokens" in options else ids
            assert_same(generate(model, some, cache, **options), generate(model, some, **options))
            cache.reset()
        assert cache.kv.stats().growths == growths, "the pages were not recycled"


@pytest.mark.parametrize(
    ("name", "attention", "dtype"),
    [
        ("tiny-llama", "eager", DType.float32),
        ("tiny-llama", "sdpa", DType.float32),
        ("tiny-llama", "sdpa", DType.bfloat16),
        ("tiny-gemma3", "sdpa", DType.float32),
    ],
)
def test_nothing_is_read_beyond_the_last_token(name, attention, dtype, monkeypatch):
    """Without look-ahead, no memory follows a last page that is full."""
    monkeypatch.setattr(LookAhead, "prepare", lambda *_: None)
    model = tiny(name, dtype).model
    model.set_attn_implementation(attention)

    def fill_pages() -> VirtualCache:
        cache = make(model, 2, 512)
        tokens = 2 * PAGE // cache.kv.row_bytes
        assert tokens * cache.kv.row_bytes == 2 * PAGE
        generate(model, prompts(2), cache, min_new_tokens=tokens - PROMPT + 1)
        assert cache.get_seq_length() == tokens
        return cache

    def read_beyond() -> None:
        cache = fill_pages()
        cache.kv.keys[0][0, cache.get_seq_length()].sum()

    assert in_child(fill_pages) == 0
    assert in_child(read_beyond) == -signal.SIGSEGV


# What is refused, and the state afterwards


def test_after_out_of_memory_generation_continues_with_a_larger_budget():
    model = model_of("tiny-llama")
    ids = prompts(2)
    dynamic = DynamicCache(config=model.config)
    expected = generate(model, ids, dynamic, min_new_tokens=40)
    pages = 2 * 2 * model.config.num_hidden_layers * PAGE
    with make(model, 2, budget=pages) as cache:
        with pytest.raises(KVOutOfMemory):
            generate(model, ids, cache, min_new_tokens=40)
        length = cache.get_seq_length()
        assert length == PAGE // cache.kv.row_bytes
        for ours, theirs in zip(cache.layers, dynamic.layers, strict=True):
            torch.testing.assert_close(ours.keys, theirs.keys[:, :, :length])
            torch.testing.assert_close(ours.values, theirs.values[:, :, :length])
        cache.kv.pool.budget = 2 * pages
        sofar = expected.sequences[:, : length + 1]
        rest = generate(model, sofar, cache, min_new_tokens=PROMPT + 40 - length - 1)
        assert torch.equal(rest.sequences, expected.sequences)


def test_after_out_of_memory_for_the_first_tokens_a_smaller_batch_fits():
    model = model_of("tiny-llama")
    with make(model, 2, budget=2 * model.config.num_hidden_layers * PAGE) as cache:
        with pytest.raises(KVOutOfMemory):
            generate(model, prompts(2), cache)
        ids = prompts(1)
        assert_same(
            generate(model, ids, cache, max_new_tokens=8), generate(model, ids, max_new_tokens=8)
        )


def test_out_of_memory_for_more_rows_leaves_the_present_ones():
    with make(model_of("tiny-llama"), 4, budget=6 * 2 * PAGE) as cache:
        twins = Twins(cache, 2)
        twins.step("update", 20)
        with pytest.raises(KVOutOfMemory):
            cache.batch_repeat_interleave(2)
        twins.step("update", 4)


def test_more_tokens_than_max_len_are_refused_with_both_numbers():
    model = model_of("tiny-llama")
    with make(model, max_len=24) as cache:
        with pytest.raises(ValueError, match="length of 25 tokens .* max_len=24"):
            generate(model, prompts(1), cache, min_new_tokens=16)
        assert cache.get_seq_length() == cache.get_max_length() == 24


def test_more_sequences_than_the_batch_are_refused_with_both_numbers():
    model = model_of("tiny-llama")
    with make(model, 2) as cache:
        with pytest.raises(ValueError, match="6 sequences .* batch=2"):
            generate(model, prompts(2), cache, num_beams=3)
        generate(model, prompts(2), cache)
        with pytest.raises(ValueError, match="4 sequences .* batch=2"):
            cache.batch_repeat_interleave(2)
        with pytest.raises(MisfitError, match=r"keys of shape \[1, .* holds \[2, "):
            model(prompts(1), past_key_values=cache)


def test_keys_that_require_gradients_are_refused():
    model = copy.deepcopy(model_of("tiny-llama")).requires_grad_(True)
    with make(model) as cache, pytest.raises(RuntimeError, match=r"torch\.no_grad"):
        model(prompts(1), past_key_values=cache)


@pytest.mark.parametrize("part", ["dtype", "kv_heads", "head_dim"])
def test_keys_of_another_model_are_refused(part):
    model = model_of("tiny-llama")
    with make(model) as cache:
        keys = states(cache, 1, 3, 0)[0][0]
        other = {
            "dtype": keys.to(torch.bfloat16),
            "kv_heads": keys[:, :1],
            "head_dim": keys[..., :8],
        }[part]
        for pair in ((other, keys), (keys, other)):
            with pytest.raises(MisfitError, match="layer 2 of LlamaConfig gave"):
                cache.update(*pair, 2)
            assert cache.kv.lengths.tolist() == [0]


def test_layers_that_disagree_about_the_batch_are_refused():
    with make(model_of("tiny-llama"), 3) as cache:
        keys, values = states(cache, 3, 4, 0)
        cache.update(keys[0], values[0], 0)
        with pytest.raises(MisfitError, match=r"layer 1 .* shape \[2, .* holds \[3, "):
            cache.update(keys[1, :2], values[1, :2], 1)


def test_crop_takes_the_same_argument_as_in_transformers():
    with make(model_of("tiny-llama")) as cache:
        twins = Twins(cache, 1)
        twins.step("update", 10)
        with pytest.raises(ValueError, match=r"crop\(3\)"):
            cache.crop(3)
        assert cache.get_seq_length() == 10


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (BartConfig(), "BartConfig with is_encoder_decoder"),
        (GPT2Config(add_cross_attention=True), "GPT2Config with add_cross_attention"),
        (DeepseekV3Config(num_hidden_layers=2), "DeepseekV3Config with kv_lora_rank"),
        (
            Lfm2Config(num_hidden_layers=2, layer_types=["conv", "full_attention"]),
            "Lfm2Config .* LinearAttentionLayer",
        ),
        (Gemma3nTextConfig(), "Gemma3nTextConfig with num_kv_shared_layers"),
        (
            Gemma4TextConfig(num_hidden_layers=6, num_kv_shared_layers=0),
            r"Gemma4TextConfig .* whose layers are alike: .*256.*512",
        ),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_models_with_other_caches_are_refused_by_name(config, reason):
    with pytest.raises(MisfitError, match=reason):
        VirtualCache(config, batch=1, max_len=8, dtype=torch.float32)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_cache_is_not_copied(duplicate):
    refused = pytest.raises(TypeError, match=r"neither copied nor pickled.*fork_prefix")
    with make(model_of("tiny-llama")) as cache, refused:
        duplicate(cache)


def test_a_sleeping_cache_refuses_and_continues_once_awake():
    model = model_of("tiny-llama")
    ids = prompts(1)
    with make(model) as cache:
        model(ids[:, :10], past_key_values=cache)
        cache.kv.sleep()
        with pytest.raises(RuntimeError, match="asleep"):
            generate(model, ids, cache)
        cache.kv.wake()
        expected = generate(model, ids)
        assert torch.equal(generate(model, ids, cache).sequences, expected.sequences)


def test_a_cache_is_neither_offloaded_nor_compiled():
    with make(model_of("tiny-llama")) as cache:
        assert not cache.is_compileable
        for method in (cache.layers[0].offload, cache.layers[0].prefetch):
            with pytest.raises(NotImplementedError, match=r"kv\.sleep"):
                method()


def test_bytes_are_those_of_the_tokens_their_pages_and_the_addresses():
    model = model_of("tiny-llama")
    config, page = model.config, 2 * PAGE
    with make(model, 3, 96, page_group=page) as cache:
        assert (cache.live_bytes, cache.committed_bytes) == (0, 0)
        generate(model, prompts(2), cache, max_new_tokens=1)
        token = 2 * config.num_key_value_heads * (config.hidden_size // 4) * 4
        assert cache.live_bytes == 2 * PROMPT * config.num_hidden_layers * token
        assert cache.committed_bytes == 2 * 2 * config.num_hidden_layers * page
        assert cache.reserved_bytes >= 3 * 96 * config.num_hidden_layers * token


def test_close_frees_everything_once_no_tensor_is_held():
    model = model_of("tiny-llama")
    cache = make(model)
    generate(model, prompts(1), cache)
    held = cache.layers[0].keys
    with pytest.raises(RuntimeError, match="alive"):
        cache.close()
    for use in (lambda: generate(model, prompts(1), cache), cache.reset, lambda: cache.crop(-1)):
        with pytest.raises(RuntimeError, match="the cache is closed"):
            use()
    del held
    cache.close()
    cache.close()
    with pytest.raises(RuntimeError, match="closed"):
        generate(model, prompts(1), cache)


def test_a_tensor_that_only_a_cycle_holds_does_not_keep_a_cache_open():
    model = model_of("tiny-llama")
    cache = make(model)
    generate(model, prompts(1), cache)
    cycle = [cache.layers[0].keys]
    cycle.append(cycle)
    gc.disable()
    try:
        del cycle
        cache.close()
    finally:
        gc.enable()


def test_an_error_within_the_context_is_the_one_raised():
    with pytest.raises(KeyError) as error, make(model_of("tiny-llama")) as cache:
        cache.update(*(each[0] for each in states(cache, 1, 3, 0)), 0)
        held = cache.layers[0].keys
        raise KeyError(held.shape)
    assert "not closed" in str(error.value.__notes__)
    del held
    cache.close()


def test_a_cache_that_is_dropped_is_closed():
    model = model_of("tiny-llama")
    kv = generate(model, prompts(1), make(model)).past_key_values.kv
    gc.collect()
    with pytest.raises(RuntimeError, match="closed"):
        kv.keys  # noqa: B018


def test_a_cache_that_is_dropped_before_views_of_it_is_closed_with_the_last(monkeypatch):
    ignored: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", ignored.append)
    model = model_of("tiny-llama")
    cache = generate(model, prompts(1), make(model)).past_key_values
    view, pool = cache.layers[0].keys[:, :1], weakref.ref(cache.kv.pool)
    expected = view.clone()
    del cache
    gc.collect()
    assert torch.equal(view, expected)
    assert pool() is not None
    del view
    gc.collect()
    assert pool() is None
    assert not ignored


def test_one_cache_does_not_mix_the_texts_of_two_threads():
    model, ids = model_of("tiny-llama"), prompts(1)
    expected = generate(model, ids)
    with make(model) as cache, ThreadPoolExecutor(1) as thread:
        assert_same(thread.submit(generate, model, ids, cache).result(), expected)
        kept = cache.layers[0].keys.clone()
        with pytest.raises(TrimtabError, match="holds tokens of thread 'ThreadPool.*reset"):
            generate(model, torch.cat([ids, ids], dim=1), cache)
        assert torch.equal(cache.layers[0].keys, kept)
        cache.reset()
        assert_same(generate(model, ids, cache), expected)


@pytest.mark.parametrize(
    "change",
    [
        lambda cache: cache.crop(-3),
        lambda cache: cache.reorder_cache(torch.tensor([0])),
        lambda cache: cache.batch_repeat_interleave(2),
        lambda cache: cache.batch_select_indices(torch.tensor([0])),
        lambda cache: cache.layers[2].crop(-3),
    ],
)
def test_one_thread_does_not_change_the_text_of_another(change):
    model, ids = model_of("tiny-llama"), prompts(1)
    with make(model, 2) as cache, ThreadPoolExecutor(1) as thread:
        first = thread.submit(generate, model, ids, cache).result().sequences
        with pytest.raises(TrimtabError, match=r"holds tokens of thread 'ThreadPool.*changes it"):
            change(cache)
        expected = generate(model, first, None, max_new_tokens=4)
        found = thread.submit(generate, model, first, cache, max_new_tokens=4).result()
        assert_same(found, expected)


def test_a_text_does_not_go_on_after_another_thread_has_dropped_its_tokens():
    model, ids = model_of("tiny-llama"), prompts(1)
    with make(model) as cache, ThreadPoolExecutor(1) as thread:
        thread.submit(generate, model, ids, cache).result()
        cache.reset()
        with pytest.raises(TrimtabError, match=r"dropped by another thread's reset\(\)"):
            thread.submit(model, ids[:, :1], past_key_values=cache).result()
        assert cache.kv.lengths.tolist() == [0]
        expected = generate(model, ids)
        assert_same(thread.submit(generate, model, ids, cache).result(), expected)
        thread.submit(cache.reset).result()
        thread.submit(model, ids[:, :1], past_key_values=cache).result()


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_tokens_dropped_in_the_middle_of_a_step_are_missed_by_the_layers_after_it(layer):
    model, ids = copy.deepcopy(model_of("tiny-llama")), prompts(1)
    with make(model) as cache, ThreadPoolExecutor(1) as thread:

        def drop(*_: object) -> None:
            once.remove()
            thread.submit(cache.reset).result()

        once = model.model.layers[layer].register_forward_hook(drop)
        with pytest.raises(TrimtabError, match=r"dropped by another thread's reset\(\)"):
            generate(model, ids, cache)
        assert cache.kv.lengths.tolist() == [0]
        assert_same(generate(model, ids, cache), generate(model, ids))


def test_a_reset_is_not_cut_in_two_by_another_thread():
    model, ids = model_of("tiny-llama"), prompts(1)
    with make(model) as cache, ThreadPoolExecutor(1) as thread:
        generate(model, ids, cache)
        begun = []

        def reset(layer, original=VirtualLayer.reset) -> None:
            original(layer)
            if not begun:
                begun.append(thread.submit(generate, model, ids, cache))
                wait(begun, timeout=0.2)

        with patch.object(VirtualLayer, "reset", reset):
            cache.reset()
        assert_same(begun[0].result(), generate(model, ids))


@pytest.mark.parametrize("batch", [0, -1, 1.0, "1", True, None])
def test_a_batch_that_cannot_be(batch):
    message = rf"batch={re.escape(repr(batch))}; expected a positive integer"
    with pytest.raises(ValueError, match=message):
        make(model_of("tiny-llama"), batch)


def test_a_text_goes_on_in_another_thread_once_the_first_has_ended():
    model, ids = model_of("tiny-llama"), prompts(1)
    with make(model) as cache:
        with ThreadPoolExecutor(1) as thread:
            first = thread.submit(generate, model, ids, cache).result().sequences
        expected = generate(model, first, None, max_new_tokens=4).sequences
        assert torch.equal(generate(model, first, cache, max_new_tokens=4).sequences, expected)


def test_a_forked_child_that_drops_a_cache_leaves_its_parents():
    model = model_of("tiny-llama")
    ids = prompts(1)
    caches = [make(model)]
    generate(model, ids, caches[0], max_new_tokens=4)
    kept = [layer.keys.clone() for layer in caches[0].layers]

    def drop() -> None:
        sys.unraisablehook = lambda _: os._exit(3)
        caches.clear()

    assert in_child(drop) == 0
    for layer, keys in zip(caches[0].layers, kept, strict=True):
        assert torch.equal(layer.keys, keys)
    caches[0].close()


# Caches over slots in use


@pytest.fixture
def kv() -> Iterator[VirtualKV]:
    with VirtualKV(3, 5, 96, 2, 16, torch.float32, page_group=PAGE) as kv:
        yield kv


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gemma3"])
def test_sequences_continue_a_single_copy_of_a_prompt(name, kv):
    model = model_of(name)
    common = prompts(1, 40)
    ids = torch.cat([common.expand(4, -1), prompts(4, 4)], dim=1)
    source = kv.acquire()
    with VirtualCache.over(model.config, kv, [source]) as cache:
        model(common, past_key_values=cache)
    slots = [kv.fork_prefix(source, 40) for _ in range(4)]
    with VirtualCache.over(model.config, kv, slots) as cache:
        assert_same(generate(model, ids, cache), generate(model, ids))
        assert kv.stats().shared_saving > 0
        for method, argument in (
            (cache.reorder_cache, torch.arange(4)),
            (cache.batch_select_indices, torch.arange(2)),
            (cache.batch_repeat_interleave, 1),
        ):
            with pytest.raises(RuntimeError, match="slots of its own"):
                method(argument)
    assert kv.length(source) == 40
    with VirtualCache.over(model.config, kv, [source]) as cache:
        assert_same(generate(model, ids[-1:], cache), generate(model, ids[-1:]))


def test_tokens_cropped_from_a_shared_prompt_are_not_overwritten(kv):
    model = model_of("tiny-llama")
    common = prompts(1, 40)
    source = kv.acquire()
    with VirtualCache.over(model.config, kv, [source]) as cache:
        model(common, past_key_values=cache)
    before = kv.keys[2][source, :40].clone()
    with VirtualCache.over(model.config, kv, [kv.fork_prefix(source, 40)]) as cache:
        cache.crop(-12)
        ids = torch.cat([common[:, :28], prompts(1, 10)], dim=1)
        assert_same(generate(model, ids, cache), generate(model, ids))
    assert torch.equal(kv.keys[2][source, :40], before)


@pytest.mark.parametrize("rows", [1, 2])
def test_a_cache_notices_that_another_has_changed_its_slots(kv, rows):
    model, ids, token = model_of("tiny-llama"), prompts(2, 9), torch.tensor([[7]])
    slots = [kv.acquire() for _ in range(2)]
    first = VirtualCache.over(model.config, kv, slots[:rows])
    model(ids[:rows], past_key_values=first)
    other = VirtualCache.over(model.config, kv, slots[rows - 1 : rows])
    early, late = (first, other) if rows == 1 else (other, first)
    model(token, past_key_values=early)
    given = token.expand(rows, 1)
    slot, length = slots[rows - 1], kv.length(slots[rows - 1])
    before = kv.keys[2][slot, :length].clone()
    changed = f"slot {slot} has {length} tokens, and this cache left {length - 1} there"
    for use in (lambda: model(given, past_key_values=late), lambda: late.crop(-2)):
        with pytest.raises(TrimtabError, match=changed):
            use()
    assert torch.equal(kv.keys[2][slot, :length], before)
    late.reset()
    model(ids[:rows], past_key_values=late)
    for cache in (first, other):
        cache.close()


def test_slots_that_are_not_consecutive_or_equally_long_are_refused(kv):
    config = model_of("tiny-llama").config
    slots = [kv.acquire() for _ in range(3)]
    with pytest.raises(ValueError, match="consecutive"):
        VirtualCache.over(config, kv, slots[::2])
    with pytest.raises(ValueError, match=r"\[\].*expected"):
        VirtualCache.over(config, kv, [])
    kv.ensure({slots[1]: 4})
    with pytest.raises(ValueError, match=r"\[0, 4\] tokens"):
        VirtualCache.over(config, kv, slots)
    with pytest.raises(MisfitError, match=r"\(3, 2, 16\), and GPT2Config has \(3, 4, 16\)"):
        VirtualCache.over(model_of("tiny-gpt2").config, kv, slots)


def test_a_cache_over_given_slots_leaves_them_alone_once_it_is_closed(kv):
    model, ids = model_of("tiny-llama"), prompts(1, 40)
    source = kv.acquire()
    with VirtualCache.over(model.config, kv, [source]) as cache:
        model(ids, past_key_values=cache)
    before = kv.keys[2][source, :40].clone()
    for use in (lambda: model(ids[:, :4] + 1, past_key_values=cache), cache.reset):
        with pytest.raises(RuntimeError, match="the cache is closed"):
            use()
    assert torch.equal(kv.keys[2][source, :40], before)


@pytest.mark.gpu
@pytest.mark.parametrize("layout", list(Layout))
@pytest.mark.parametrize("options", [{}, MODES["beams"], MODES["prompt lookup"]])
@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gemma3"])
def test_on_a_gpu_as_on_a_dynamic_cache(name, options, layout):
    model = load_model(RandomModel(device="cuda", dtype=DType.float32, config=name, seed=0)).model
    ids = prompts(1 if "prompt_lookup_num_tokens" in options else 2).cuda()
    with make(model, 6, 2048, layout=layout) as cache:
        options = options | {"min_new_tokens": 128}
        assert_same(generate(model, ids, cache, **options), generate(model, ids, **options))
        assert cache.committed_bytes < cache.reserved_bytes
