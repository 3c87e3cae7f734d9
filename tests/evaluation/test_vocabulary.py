"""Evaluation of methods that change the vocabulary, or that draft."""

from __future__ import annotations

import math
from functools import partial, partialmethod
from typing import Any

import pytest
import torch

from tests.conftest import tiny
from tests.evaluation.test_result import configured, counted, leaves
from tests.evaluation.vocabulary import Vocabulary, extended_tokenizer, ngrams, node
from trimtab.commands.evaluate import evaluate
from trimtab.config import MeasureConfig, QualityConfig
from trimtab.corpora import Document
from trimtab.corpus import encode
from trimtab.evaluation.cache_memory import CacheKind, CacheMemory
from trimtab.evaluation.contenders import Contender
from trimtab.evaluation.generators import EngineGenerator, TransformersGenerator
from trimtab.evaluation.intervals import rate_difference, typical
from trimtab.evaluation.job import Job
from trimtab.evaluation.metrics import kv
from trimtab.evaluation.metrics.compression import Compression
from trimtab.evaluation.metrics.greedy import Greedy
from trimtab.evaluation.metrics.kv import KV
from trimtab.evaluation.metrics.latency import Latency
from trimtab.evaluation.metrics.metric import Metric
from trimtab.evaluation.result import Result
from trimtab.evaluation.scoring import Score
from trimtab.evaluation.timing import Timing
from trimtab.evaluation.workload import Prompt, Window
from trimtab.models.random import byte_tokenizer
from trimtab.stack import AppliedStack, Stack

BASE, MORE = byte_tokenizer(), extended_tokenizer()
TEXT = "The following operations are the same as those of the other expressions in the list. "
WINDOW = Window("d", TEXT, TEXT[::2] + TEXT)
PROMPT = Prompt("d", TEXT, TEXT + TEXT)


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("vocabulary") / "model"
    loaded = tiny()
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return ["model=hub", f"model.name={folder}"]


@pytest.fixture(scope="module")
def results(hub, tmp_path_factory) -> dict[str, dict[str, Any]]:
    found = {}
    for name, mode, paired in (
        ("full", "full", True), ("input", "input", True), ("draft", "draft", True),
        ("unpaired", "full", False),
    ):  # fmt: skip
        config = configured(
            tmp_path_factory.mktemp(name), *hub, f"paired={paired}", "generation.prompt_bytes=120",
            "generation.new_tokens=60",
        )  # fmt: skip
        config.methods = node(mode)
        found[name] = evaluate(config, name)
    return found


def step_by_step(model, context: list[int], text: list[int], vocabulary: int) -> float:
    """Return the bits of `text` after `context`, from one forward pass per token."""
    ids, bits = [BASE.bos_token_id, *context], 0.0
    for token in text:
        logits = model(torch.tensor([ids])).logits[0, -1].double()
        assert len(logits) == vocabulary
        bits -= float(logits.log_softmax(-1)[token]) / math.log(2)
        ids.append(token)
    return bits


@pytest.mark.parametrize("mode", ["full", "input"])
def test_text_is_scored_in_the_tokens_the_model_generates(mode):
    loaded = tiny()
    with Stack([Vocabulary(mode=mode)]).apply(loaded.model, BASE, {}) as stack:
        contender = Contender("candidate", loaded.model, BASE, stack)
        assert contender.changes_vocabulary
        output, size = (MORE, ngrams().size) if mode == "full" else (BASE, 320)
        context = encode(MORE, WINDOW.context)
        assert len(context) < len(encode(BASE, WINDOW.context))
        text = encode(output, WINDOW.text)
        found = contender.score(WINDOW)
        assert (found.tokens, found.context_tokens) == (len(text), len(context))
        expected = step_by_step(loaded.model, context, text, size)
        assert found.bits == pytest.approx(expected, rel=1e-4)
        found = contender.score_base_tokens(WINDOW)
        text = encode(BASE, WINDOW.text)
        assert (found.tokens, found.context_tokens) == (len(text), len(context))
        with stack.base_output():
            expected = step_by_step(loaded.model, context, text, 320)
        assert found.bits == pytest.approx(expected, rel=1e-4)


def test_the_control_reads_the_newest_tokens_under_the_unmodified_model():
    loaded = tiny()
    metric = Compression(job())
    metric.windows = [WINDOW, Window("e", TEXT[10:], TEXT)]
    with Stack([Vocabulary(mode="full")]).apply(loaded.model, BASE, {}) as stack:
        metric.measure([Contender("candidate", loaded.model, BASE, stack)])
    metric.measure([Contender("baseline", loaded.model, BASE)])
    found = metric.scores
    for window, short, whole, cut in zip(
        metric.windows, found["candidate"], found["baseline"], found["prompt_cut"], strict=True
    ):
        context, text = encode(BASE, window.context), encode(BASE, window.text)
        kept = len(encode(MORE, window.context))
        assert short.context_tokens == cut.context_tokens == kept < whole.context_tokens
        assert whole.bits == pytest.approx(step_by_step(loaded.model, context, text, 320), rel=1e-4)
        context = context[-kept:]
        assert cut.bits == pytest.approx(step_by_step(loaded.model, context, text, 320), rel=1e-4)


@pytest.mark.parametrize("mode", ["full", "input", "draft"])
def test_a_text_is_generated_in_the_tokens_of_the_output(mode):
    loaded = tiny()
    fed: list[int] = []
    expected = TransformersGenerator(loaded.model, BASE).greedy(PROMPT, 8)
    with Stack([Vocabulary(mode=mode)]).apply(loaded.model, BASE, {}) as stack:
        contender = Contender("candidate", loaded.model, BASE, stack)
        with contender.generating():
            handle = loaded.model.get_input_embeddings().register_forward_pre_hook(
                lambda module, inputs: fed.extend(inputs[0][0].tolist())
            )
            timing = contender.generator.teacher_forced(PROMPT)
            handle.remove()
            text = contender.generator.greedy(PROMPT, 8)
    prompt = encode(stack.tokenizer, PROMPT.text)
    output = encode(stack.output_tokenizer, PROMPT.continuation)
    assert (timing.prompt_tokens, timing.new_tokens) == (len(prompt), len(output))
    if mode == "draft":
        assert text == expected
    else:
        assert fed == (prompt + output)[:-1]
        assert (len(output) < len(encode(BASE, PROMPT.continuation))) == (mode == "full")
    assert text


def test_drafts_take_fewer_steps_for_the_same_text():
    loaded = tiny()
    plain = TransformersGenerator(loaded.model, BASE).teacher_forced(PROMPT)
    with Stack([Vocabulary(mode="draft")]).apply(loaded.model, BASE, {}) as stack:
        contender = Contender("candidate", loaded.model, BASE, stack)
        with contender.generating():
            timing = contender.generator.teacher_forced(PROMPT)
            counted = contender.engine.stats
    assert plain.steps == plain.new_tokens == timing.new_tokens
    assert counted.verify_steps > 0
    assert timing.steps == counted.prefill_steps + counted.decode_steps + counted.verify_steps
    assert timing.steps == plain.steps - counted.accepted
    assert 0 < counted.accepted < counted.proposed  # wrong drafts were among them
    assert sum(timing.step_tokens) == timing.new_tokens
    assert max(timing.step_tokens) > 1
    assert len(timing.gaps) == timing.steps - 1
    assert timing.live_bytes == plain.live_bytes
    assert len(timing.token_times) == timing.new_tokens - timing.step_tokens[0]
    assert sum(timing.token_times) == pytest.approx(sum(timing.gaps))


def test_where_prompt_or_output_changes_the_figures_are_those_of_the_samples(results):
    for name in ("full", "input", "unpaired"):
        result = results[name]
        missing = {name for name, value in leaves(result).items() if value is None}
        assert missing == set(result["reasons"])
        assert {"quality.perplexity", "quality.kl_bits_per_token"} <= missing
        quality, samples = result["quality"], result["samples"]
        compression = quality["compression"]
        rows = {
            model: [row for row in samples["compression"] if row["model"] == model]
            for model in ("baseline", "candidate", "prompt_cut")
        }
        for model, mine in rows.items():
            size = sum(row["bytes"] for row in mine)
            assert len(mine) == compression["windows"] == 3
            assert size == sum(row["tokens"] for row in mine)  # all in base tokens, bytes here
            assert compression["tokens"][model] == sum(row["context_tokens"] for row in mine)
            bits = compression["bits_per_byte"][model]
            assert bits == pytest.approx(sum(row["bits"] for row in mine) / size)
        difference = rate_difference(
            [row["bits"] for row in rows["prompt_cut"]],
            [row["bits"] for row in rows["candidate"]],
            [row["bytes"] for row in rows["candidate"]],
            seed=0,
        )
        assert compression["bits_per_byte"]["difference"] == difference
        mine = samples["base_tokens"]
        assert len(mine) == quality["windows"]
        bits = sum(row["bits"] for row in mine) / sum(row["bytes"] for row in mine)
        assert quality["base_tokens"]["bits_per_byte"]["candidate"] == pytest.approx(bits)


def test_all_tokenizations_are_scored_where_output_tokens_are_new(results):
    for name in ("full", "unpaired"):
        section, samples = results[name]["quality"]["marginal_likelihood"], results[name]["samples"]
        assert (section["windows"], section["samples"]) == (2, 4)
        documents = [row["document"] for row in samples["marginal_likelihood"]]
        assert documents[:2] == documents[2:]
        bits_per_byte = section["bits_per_byte"]
        for model in ("canonical", "marginal"):
            rows = [row for row in samples["marginal_likelihood"] if row["model"] == model]
            bits = sum(row["bits"] for row in rows) / sum(row["bytes"] for row in rows)
            assert bits_per_byte[model] == pytest.approx(bits)
        difference = bits_per_byte["marginal"] - bits_per_byte["canonical"]
        assert bits_per_byte["difference"]["estimate"] == pytest.approx(difference)
    for name in ("input", "draft"):
        assert results[name]["quality"]["marginal_likelihood"] is None
        assert "quality.marginal_likelihood" in results[name]["reasons"]


def scores(*nats: float, tokens: int = 20) -> list[Score]:
    return [Score(one, tokens=4, size=8, context_tokens=tokens, log_probs=None) for one in nats]


def job(**quality: int) -> Job:
    """Return a measurement of a stack that changes the vocabulary of prompts and outputs."""
    settings = MeasureConfig(quality=QualityConfig(compression_windows=4, **quality))
    documents = [Document("d", TEXT * 200)]
    return Job(
        documents, BASE, tiny().model.config, settings, known_weights=True,
        changes_vocabulary=True, paired=True,
    )  # fmt: skip


def summary(metric: Metric) -> dict[str, Any]:
    model, result = tiny().model, Result()
    candidate = Contender("candidate", model, BASE, AppliedStack(MORE, MORE, []))
    metric.summarise(result, Contender("baseline", model, BASE), candidate)
    return result.sections


def compared(cut: list[Score], compressed: list[Score], read: int = 25) -> dict[str, Any]:
    metric = Compression(job())
    metric.windows = [WINDOW] * 4
    whole = scores(4, 5, 6, 7, tokens=read)
    metric.scores = {"baseline": whole, "candidate": compressed, "prompt_cut": cut}
    return dict(summary(metric)["quality"]["compression"])


def agreement(first: str, second: str) -> tuple[float, float]:
    metric = Greedy(job())
    metric.prompts = [PROMPT] * 2
    metric.texts = {"baseline": [first] * 2, "candidate": [second] * 2}
    quality = summary(metric)["quality"]
    return quality["greedy_agreement"]["estimate"], quality["exact_match"]["estimate"]


def test_the_control_is_beaten_only_where_the_whole_interval_says_so():
    for change, beats in (((-1, -1, -1, -0.5), True), ((-4, -4, -4, 6), False), ((1,) * 4, False)):
        cut = scores(8, 9, 10, 11)
        compressed = scores(*(one.nats + more for one, more in zip(cut, change, strict=True)))
        compression = compared(cut, compressed)
        difference = compression["bits_per_byte"]["difference"]
        assert difference["estimate"] == pytest.approx(sum(change) / math.log(2) / 32)
        assert compression["beats_control"] == beats
        assert compression["tokens"] == {"baseline": 100, "candidate": 80, "prompt_cut": 80}
    unshortened = compared(scores(8, 9, 10, 11), scores(7, 8, 9, 10), read=20)
    assert unshortened["bits_per_byte"]["difference"]["high"] < 0
    assert not unshortened["beats_control"]


def test_greedy_texts_in_other_tokens_are_compared_up_to_the_shorter_one():
    assert agreement("abcdef", "abcdefgh") == (1, 1)
    assert agreement("abcdefgh", "abXd") == (0.5, 0)
    assert agreement("", "abc") == (0, 0)
    assert agreement("", "") == (1, 1)


def test_where_only_the_prompt_changes_the_base_tokens_are_the_output_anyway(results):
    quality = results["input"]["quality"]
    assert quality["base_tokens"]["bits_per_byte"] == quality["bits_per_byte"]
    quality = results["full"]["quality"]
    assert quality["base_tokens"]["bits_per_byte"] != quality["bits_per_byte"]


def test_pairing_changes_no_figure_of_a_changed_vocabulary(results):
    for section in ("quality", "tokens"):
        assert results["unpaired"][section] == results["full"][section]
    assert counted(results["unpaired"]["kv"]) == counted(results["full"]["kv"])


def test_tokens_and_steps_are_those_of_the_same_text(results):
    for name, (prompt, output) in {"full": (True, True), "input": (True, False)}.items():
        tokens = results[name]["tokens"]
        assert (tokens["prompt"]["saving"] > 0) == prompt
        assert (tokens["output"]["saving"] > 0) == output
        assert tokens["steps"]["candidate"] == tokens["output"]["candidate"]


def test_the_cache_is_that_of_the_generation_where_the_candidates_is_largest():
    shared = job()
    timings = {
        name: [
            Timing(0.1, [], [1], 0.2, 1, 1, prompt_size=10 * number, size=5, live_bytes=one,
                   committed_bytes=one + number, reserved_bytes=one + 2 * number)
            for number, one in enumerate(live, start=1)
        ]
        for name, live in (("baseline", [900, 400, 500]), ("candidate", [100, 300, 200]))
    }  # fmt: skip
    shared.metrics[Greedy] = Greedy(shared)
    shared.metrics[Latency] = latency = Latency(shared)
    latency.timings = timings
    metric = KV(shared)
    metric.caches["baseline"] = {CacheKind.dynamic: CacheMemory(400, 402, 4096)}
    metric.caches["candidate"] = {
        CacheKind.dynamic: CacheMemory(300, 302, 8192),
        CacheKind.static: CacheMemory(310, 310, None),
    }
    result = Result()
    contenders = [Contender(name, tiny().model, BASE) for name in ("baseline", "candidate")]
    metric.summarise(result, *contenders)
    found = result.sections["kv"]
    assert (found["measured_bytes"], found["dynamic_measured_bytes"]) == (8192, 4096)
    assert (found["static_bytes"], found["static_measured_bytes"]) == (310, None)
    assert {*result.reasons} == {"kv.huge_page_bytes", "kv.static_measured_bytes"}
    assert found["live_bytes_per_byte"] == {"baseline": 400 / 25, "candidate": 300 / 25}
    assert (found["live_bytes"], found["wasted_bytes"], found["dynamic_bytes"]) == (300, 2, 402)


def test_a_cache_that_transformers_cannot_use_is_no_failure_of_the_measurement(
    hub, tmp_path, monkeypatch
):
    whole = kv.transformers_cache

    def failing(*arguments):
        if arguments[-1] is CacheKind.static:
            raise AttributeError("'BlockMask' object has no attribute 'contiguous'\nmore")
        return whole(*arguments)

    monkeypatch.setattr(kv, "transformers_cache", failing)
    config = configured(tmp_path, *hub)
    config.methods = {}
    result = evaluate(config, "no static cache")
    reason = "transformers' static cache fails on it: 'BlockMask' object has no attribute "
    for name in ("static_bytes", "static_measured_bytes"):
        assert result["kv"][name] is None
        assert result["reasons"][f"kv.{name}"].startswith(reason)
        assert "more" not in result["reasons"][f"kv.{name}"]
    assert result["kv"]["dynamic_bytes"] == result["kv"]["committed_bytes"] > 0


def test_drafts_change_steps_and_times_and_nothing_else(results):
    result = results["draft"]
    # The engine reads the text another way than transformers, and rounds another way.
    difference = result["quality"]["bits_per_byte"]["difference"]["estimate"]
    assert difference == pytest.approx(0, abs=1e-6)
    assert result["quality"]["kl_bits_per_token"]["estimate"] == pytest.approx(0, abs=1e-6)
    assert (result["quality"]["exact_match"]["estimate"], result["tokens"]["saving"]) == (1, 0)
    for name in ("base_tokens", "compression"):
        assert result["quality"][name] is None
        assert "vocabulary" in result["reasons"][f"quality.{name}"]
    assert 0 < result["tokens"]["steps"]["saving"] < 1
    assert 0 < result["engine"]["accepted"] < result["engine"]["proposed"]
    rows = [row for row in result["samples"]["timings"] if row["model"] == "candidate"]
    found = result["speed"]["decode_tokens_per_s"]["candidate"]
    rates = [sum(row["step_tokens"][1:]) / sum(row["gaps"]) for row in rows]
    assert found == pytest.approx(typical(rates))
    assert sum(row["new_tokens"] for row in rows) > sum(len(row["step_tokens"]) for row in rows)


def test_a_text_in_a_single_step_has_no_decoding_to_time(hub, tmp_path, monkeypatch):
    def in_one_step(teacher_forced, *arguments):
        timing = teacher_forced(*arguments)
        timing.gaps, timing.step_tokens = [], [timing.new_tokens]
        return timing

    for kind in (TransformersGenerator, EngineGenerator):
        changed = partialmethod(partial(in_one_step, kind.teacher_forced))
        monkeypatch.setattr(kind, "teacher_forced", changed)
    config = configured(tmp_path, *hub)
    config.methods = {"vattention": {"_target_": "trimtab.vattention.VAttention"}}
    result = evaluate(config, "one step")
    assert result["engine"]["ms_per_text"] is None
    assert "single step" in result["reasons"]["engine.ms_per_text"]
    assert result["speed"]["decode_tokens_per_s"] is None
    assert "single step" in result["reasons"]["speed.decode_speedup"]
    assert {n for n, value in leaves(result).items() if value is None} == set(result["reasons"])


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("quality.compression_windows=0", "quality.compression_windows=0"),
        ("quality.compression_context_bytes=10000000", "fewer than 2 stretches of 10000048 bytes"),
    ],
)
def test_compression_that_is_not_measured_says_why(hub, tmp_path, setting, reason):
    config = configured(tmp_path, *hub, setting)
    config.methods = node("input")
    result = evaluate(config, "none")
    assert result["quality"]["compression"] is None
    assert reason in result["reasons"]["quality.compression"]
    assert result["samples"]["compression"] == []
