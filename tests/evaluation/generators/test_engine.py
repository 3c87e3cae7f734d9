"""Generation on the engine, as evaluation measures it."""

from __future__ import annotations

import mmap
from typing import Any

import pytest

from tests.conftest import tiny
from tests.evaluation.test_result import configured, leaves
from tests.evaluation.vocabulary import Vocabulary, extended_tokenizer, node
from trimtab.commands.evaluate import evaluate
from trimtab.config import EvaluateConfig
from trimtab.corpus import encode
from trimtab.evaluation.contenders import Contender
from trimtab.evaluation.generators import EngineGenerator, TransformersGenerator
from trimtab.evaluation.workload import Prompt, Window
from trimtab.models.random import byte_tokenizer
from trimtab.stack import Stack
from trimtab.vattention import VAttention
from trimtab.vattention.layout import committed_bytes

BASE = byte_tokenizer()
TEXT = "The following operations are the same as those of the other expressions in the list. "
PROMPT = Prompt("d", TEXT, TEXT + TEXT)
PAGE = 4096
# 3 layers of keys and values, each with a page at either end that others may share.
PADS = 3 * 2 * 2 * mmap.PAGESIZE


def with_transformers(model: Any, new_tokens: int) -> str:
    return TransformersGenerator(model, BASE).greedy(PROMPT, new_tokens)


def test_a_contender_generates_with_the_engine_within_the_block_alone():
    loaded = tiny()
    with Stack([VAttention(page_group=PAGE)]).apply(loaded.model, BASE, {}) as applied:
        candidate = Contender("candidate", loaded.model, BASE, applied)
        before = loaded.model.config._attn_implementation
        assert isinstance(candidate.generator, TransformersGenerator)
        with candidate.generating():
            assert isinstance(candidate.generator, EngineGenerator)
            on_engine = candidate.generator.greedy(PROMPT, 24)
            assert candidate.engine.stats.decode_steps == 23
        assert isinstance(candidate.generator, TransformersGenerator)
        assert loaded.model.config._attn_implementation == before
        assert on_engine == candidate.generator.greedy(PROMPT, 24)
        assert on_engine == with_transformers(loaded.model, 24)


def test_penalties_that_a_model_ships_are_left_out_by_both():
    """Else an engine without them would seem to change the text."""
    loaded = tiny()
    expected = with_transformers(loaded.model, 24)
    loaded.model.generation_config.repetition_penalty = 5.0
    loaded.model.generation_config.no_repeat_ngram_size = 1
    assert with_transformers(loaded.model, 24) == expected


def test_a_contender_scores_with_the_engine_within_the_block_alone(monkeypatch):
    loaded, window = tiny(), Window("d", TEXT, TEXT)
    with Stack([VAttention(page_group=PAGE)]).apply(loaded.model, BASE, {}) as applied:
        candidate = Contender("candidate", loaded.model, BASE, applied)
        expected = candidate.score(window)
        with candidate.generating():
            read = []
            engine = candidate.generator.engine
            logits = engine.logits
            monkeypatch.setattr(
                engine, "logits", lambda *parts: read.append(parts) or logits(*parts)
            )
            found = candidate.score(window)
            assert engine.kv.stats().growths > 0
        ((prompt, text),) = read
    assert (prompt, text) == ([BASE.bos_token_id, *encode(BASE, TEXT)], encode(BASE, TEXT))
    assert found.nats == pytest.approx(expected.nats, rel=1e-6)


def test_greedy_text_goes_on_past_the_stop_token_as_with_transformers():
    loaded = tiny()
    free = with_transformers(loaded.model, 8)
    loaded.model.generation_config.eos_token_id = encode(BASE, free)[2]
    with Stack([VAttention()]).apply(loaded.model, BASE, {}) as applied:
        candidate = Contender("candidate", loaded.model, BASE, applied)
        with candidate.generating():
            found = candidate.generator.greedy(PROMPT, 8)
    assert found == with_transformers(loaded.model, 8)


@pytest.mark.parametrize("layout", ["slot", "mega"])
@pytest.mark.parametrize("mode", [None, "full", "input", "draft"])
def test_the_engine_is_timed_on_the_same_text_and_its_cache_is_measured(mode, layout):
    loaded = tiny()
    methods = [VAttention(layout=layout, page_group=PAGE)]
    if mode:
        methods.append(Vocabulary(mode=mode))
    with Stack(methods).apply(loaded.model, BASE, {}) as applied:
        candidate = Contender("candidate", loaded.model, BASE, applied)
        with candidate.generating():
            timing = candidate.generator.teacher_forced(PROMPT)
            geometry = candidate.generator.engine.kv.geometry
            again = candidate.generator.teacher_forced(PROMPT)
    plain = Contender("candidate", loaded.model, BASE)
    if mode in ("full", "input"):
        assert timing.prompt_tokens == len(extended_tokenizer()(TEXT)["input_ids"])
    else:
        expected = plain.generator.teacher_forced(PROMPT)
        assert (timing.prompt_tokens, timing.new_tokens) == (
            expected.prompt_tokens, expected.new_tokens,
        )  # fmt: skip
        assert timing.live_bytes == expected.live_bytes
    assert sum(timing.step_tokens) == timing.new_tokens == again.new_tokens
    assert len(timing.gaps) == timing.steps - 1
    assert (timing.steps < timing.new_tokens) == (mode == "draft")
    assert 0 < timing.first <= timing.first + sum(timing.gaps) <= timing.total
    tokens = timing.prompt_tokens + timing.new_tokens - 1
    assert timing.live_bytes == tokens * geometry.token_bytes
    expected = committed_bytes([tokens], geometry, PAGE)
    a_row = geometry.planes * PAGE  # made ready for the next tokens, or for a draft
    assert timing.committed_bytes - expected in (0, a_row)
    assert timing.measured_bytes == timing.committed_bytes
    assert timing.reserved_bytes == geometry.reserved_bytes(PAGE) > timing.committed_bytes


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("engine") / "model"
    loaded = tiny()
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return ["model=hub", f"model.name={folder}"]


def stacked(folder: Any, hub: list[str], *modes: str) -> EvaluateConfig:
    config = configured(
        folder, *hub, "generation.prompt_bytes=120", "generation.new_tokens=60",
    )  # fmt: skip
    config.methods = {"vattention": {"_target_": "trimtab.vattention.VAttention"}}
    for mode in modes:
        config.methods |= node(mode)
    return config


def test_the_cache_changes_no_text_and_its_bytes_are_reported(hub, tmp_path):
    config = stacked(tmp_path, hub)
    config.methods["vattention"]["page_group"] = PAGE
    result = evaluate(config, "vattention")
    difference = result["quality"]["bits_per_byte"]["difference"]["estimate"]
    assert difference == pytest.approx(0, abs=1e-6)
    assert result["quality"]["exact_match"]["estimate"] == 1
    assert result["kernel"].startswith("decode attention: C++")
    kv = result["kv"]
    assert kv["live_bytes"] < kv["committed_bytes"] < kv["reserved_bytes"]
    assert kv["measured_bytes"] == kv["committed_bytes"]
    # Nothing is left of the windows, which are longer: pages of 32 tokens, a row of them ready.
    assert kv["committed_bytes"] <= (-(-kv["tokens"] // 32) + 1) * 3 * 2 * PAGE
    assert kv["wasted_bytes"] == kv["committed_bytes"] - kv["live_bytes"]
    assert kv["dynamic_bytes"] == kv["live_bytes"]
    for name in ("dynamic", "static"):
        beyond = kv[f"{name}_measured_bytes"] - kv[f"{name}_bytes"]
        assert 0 <= beyond <= PADS
    texts = 2 * 4  # of two prompts: a warm-up and three repeats
    assert result["engine"]["decode_steps"] == texts * (60 - 1)
    assert result["engine"]["prefill_steps"] == texts
    assert {n for n, value in leaves(result).items() if value is None} == set(result["reasons"])


def test_drafts_are_verified_by_the_engine(hub, tmp_path):
    drafted = evaluate(stacked(tmp_path, hub, "draft"), "fused")
    assert drafted["engine"]["accepted"] > 0
    assert 0 < drafted["tokens"]["steps"]["saving"] < 1
    assert drafted["quality"]["exact_match"]["estimate"] == 1


def test_without_a_cache_of_its_own_a_stack_has_no_engine(hub, tmp_path):
    config = stacked(tmp_path, hub)
    config.methods = {}
    result = evaluate(config, "baseline")
    assert result["engine"] is None
    assert "engine" in result["reasons"]
    kv = result["kv"]
    assert kv["committed_bytes"] <= kv["measured_bytes"] <= kv["committed_bytes"] + PADS
