"""Generation on the engine, as evaluation measures it."""

from __future__ import annotations

import mmap
from statistics import fmean
from typing import Any

import jsonschema
import pytest

from tests.conftest import tiny
from tests.evaluation.test_result import configured, leaves
from tests.evaluation.vocabulary import Vocabulary, extended_tokenizer, node
from trimtab.commands.evaluate import evaluate
from trimtab.config import EvaluateConfig
from trimtab.corpus import encode
from trimtab.evaluation.contenders import Contender
from trimtab.evaluation.generators import EngineGenerator, TransformersGenerator
from trimtab.evaluation.metrics.latency import UNTOLD
from trimtab.evaluation.schema import json_schema
from trimtab.evaluation.work import TextTime
from trimtab.evaluation.workload import Prompt, Window
from trimtab.models.random import byte_tokenizer
from trimtab.stack import Stack
from trimtab.vattention import VAttention
from trimtab.vattention.layout import committed_bytes
from trimtab_kernels.decode_step import dispatch

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


def test_a_contender_knows_the_most_pages_that_any_of_its_engines_held():
    loaded, peaks = tiny(), []
    with Stack([VAttention(page_group=PAGE)]).apply(loaded.model, BASE, {}) as applied:
        candidate = Contender("candidate", loaded.model, BASE, applied)
        for tokens in (24, 70, 1):
            with candidate.generating():
                candidate.generator.greedy(PROMPT, tokens)
                candidate.engine.kv.trim()
                peaks.append(candidate.engine.kv.stats().peak_committed)
            assert candidate.peak_page_bytes == max(peaks)
        with candidate.running_engine(2, 128) as engine:
            engine.generate([encode(BASE, TEXT)] * 2, max_new_tokens=70)
        assert candidate.peak_page_bytes > peaks[1] > peaks[0]


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
            work = candidate.engine.step_seconds
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
    for kind, seconds in work.items():  # of these two texts, and of nothing else
        assert timing.step_seconds[kind] + again.step_seconds[kind] == pytest.approx(seconds)
    assert 0 < sum(timing.step_seconds.values()) <= sum(timing.gaps)
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
    assert result["engine"]["kv_layout"] == "slot"
    assert result["environment"]["sdpa_kernels"] == ["flash", "mem_efficient", "math"]
    assert "methods.vattention.layout" not in result["settings"]
    assert {n for n, value in leaves(result).items() if value is None} == set(result["reasons"])


@pytest.mark.parametrize("modes", [[], ["draft"]])
def test_the_parts_of_a_texts_time_are_those_of_the_timed_texts_and_add_up(hub, tmp_path, modes):
    result = evaluate(stacked(tmp_path, hub, *modes), "parts")
    jsonschema.validate(result, json_schema())
    parts = result["engine"]["ms_per_text"]
    assert [*parts] == [*TextTime.__annotations__]
    timed = [row for row in result["samples"]["timings"] if row["model"] == "candidate"]
    assert len(timed) == 2 * 3  # prompts and repeats; the warm-up is not among them
    assert sum(parts.values()) == pytest.approx(1e3 * fmean(row["total"] for row in timed))
    assert parts["prefill"] == pytest.approx(1e3 * fmean(row["first"] for row in timed))
    attention = fmean(row["step_seconds"]["attention"] for row in timed)
    assert parts["attention"] == pytest.approx(1e3 * attention)
    assert min(parts.values()) >= 0


def test_by_the_models_modules_nothing_tells_where_the_time_goes(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(dispatch, "unavailable", lambda *_: "no compiler")
    result = evaluate(stacked(tmp_path, hub), "vattention")
    assert result["engine"]["ms_per_text"] is None
    reason = f"{UNTOLD}: decode step by the model's modules: no compiler"
    assert result["reasons"]["engine.ms_per_text"] == reason
    assert not any("step_seconds" in row for row in result["samples"]["timings"])


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
