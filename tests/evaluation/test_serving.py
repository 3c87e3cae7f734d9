"""Scenario *serving* in a job: its table, its speedups, and what is said where it cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from tests.evaluation.test_result import configured
from tests.evaluation.vocabulary import node
from trimtab.commands.evaluate import evaluate
from trimtab.config import METRICS
from trimtab.errors import TrimtabError
from trimtab.evaluation import serving
from trimtab.evaluation.intervals import geometric_mean
from trimtab.evaluation.schema import json_schema
from trimtab.evaluation.speed import verdict

ONLY = [f"~metrics.{name}" for name in METRICS if name != "serving"]
VATTENTION = {"vattention": {"_target_": "trimtab.vattention.VAttention", "page_group": 4096}}
SERVERS = ["candidate", "padded", "control", "static", "continuous"]


def served(
    folder: Path, *more: str, methods: dict[str, Any] | None = None, model: str = "tiny-llama"
) -> dict[str, Any]:
    config = configured(
        folder, "model=random", f"model.config={model}", *ONLY, "serving.requests=[2,4]",
        "serving.prompt_bytes=[16,120]", "serving.new_tokens=[4,10]", "serving.repeats=2", *more,
    )  # fmt: skip
    config.methods = methods or {}
    return evaluate(config, "test")


def row(result: dict[str, Any], server: str, requests: int = 4) -> dict[str, Any]:
    (found,) = [
        one
        for one in result["serving"]["servers"]
        if (one["requests"], one["server"]) == (requests, server)
    ]
    return dict(found)


def samples(result: dict[str, Any], server: str, requests: int = 4) -> list[dict[str, Any]]:
    return [
        one
        for one in result["samples"]["serving"]
        if (one["requests"], one["server"]) == (requests, server)
    ]


def each(one: dict[str, Any], rate: str) -> float:
    """Return what a rate is of one request."""
    return float(one[rate]["estimate"] / one["requests_per_s"]["estimate"])


@pytest.fixture(scope="module")
def result(tmp_path_factory) -> dict[str, Any]:
    return served(tmp_path_factory.mktemp("serving"), methods=VATTENTION)


def test_every_server_has_a_row_for_every_number_of_requests_with_all_its_figures(result):
    rows = result["serving"]["servers"]
    assert sorted((one["requests"], one["server"]) for one in rows) == sorted(
        (count, name) for count in (2, 4) for name in SERVERS
    )
    for one in rows:
        empty = {name for name, value in one.items() if value is None}
        assert empty == ({"bytes_per_s"} if one["server"] == "continuous" else {"reason"})
        assert (one["rounds"], one["refused"], one["preempted"]) == (2, 0, 0)
        assert one["at_once"] == one["requests"]
        assert one["kv_wasted_bytes"] >= 0
        assert 0 < one["ttft_p50_ms"]["estimate"] <= one["ttft_p99_ms"]["estimate"]
    assert "own greedy ones" in row(result, "continuous")["reason"]


def test_peers_that_are_left_out_are_not_served(tmp_path):
    found = served(tmp_path, "serving.requests=[2]", "serving.peers=[static]", methods=VATTENTION)
    served_by = [one["server"] for one in found["serving"]["servers"]]
    assert sorted(served_by) == ["candidate", "control", "padded", "static"]
    assert found["serving"]["speedup_continuous"] is None
    assert found["reasons"]["serving.speedup_continuous"] == "serving.peers has no continuous"
    assert found["serving"]["speedup"]
    assert found["serving"]["verdict"]


def test_figures_are_those_of_the_samples(result):
    asked = [one for one in result["samples"]["serving_requests"] if one["requests"] == 4]
    tokens, size = (sum(one[name] for one in asked) for name in ("new_tokens", "bytes"))
    assert {one["new_tokens"] for one in asked} == {4, 5, 7, 10}
    seconds = {name: [one["seconds"] for one in samples(result, name)] for name in SERVERS}
    for name in SERVERS:
        own, rates = row(result, name), {"requests_per_s": 4, "texts_per_s": 4}
        rates |= {"tokens_per_s": tokens} | ({} if name == "continuous" else {"bytes_per_s": size})
        for rate, count in rates.items():
            expected = geometric_mean([count / taken for taken in seconds[name]])
            assert own[rate] == pytest.approx(expected)
        firsts = [sample["first"] for sample in samples(result, name)]
        for point in (50, 99):
            expected = geometric_mean([1e3 * np.percentile(first, point) for first in firsts])
            assert own[f"ttft_p{point}_ms"] == pytest.approx(expected)
    for name, own, other in (
        ("speedup", "candidate", "padded"),
        ("speedup_continuous", "candidate", "continuous"),
        ("control", "control", "padded"),
    ):
        found = result["serving"][name]
        assert found["low"] <= found["estimate"] <= found["high"]
        low, *_, high = sorted(
            theirs / ours for theirs, ours in zip(seconds[other], seconds[own], strict=True)
        )
        assert low <= found["estimate"] <= high
        first, second = (row(result, one)["texts_per_s"]["estimate"] for one in (own, other))
        assert found["estimate"] == pytest.approx(first / second)
    speedup, control = (result["serving"][name] for name in ("speedup", "control"))
    assert result["serving"]["verdict"] == verdict(speedup, control)


def test_pages_take_less_than_padding_and_all_keep_within_the_budget(result):
    budget = result["serving"]["kv_budget_bytes"]
    assert budget == row(result, "padded")["kv_committed_bytes"]
    candidate = row(result, "candidate")
    assert candidate["kv_committed_bytes"] < budget
    assert candidate["kv_wasted_bytes"] < row(result, "padded")["kv_wasted_bytes"]


def test_a_real_result_fits_the_schema(tmp_path):
    from tests.evaluation.test_result import run

    random = ["model=random", "model.config=tiny-llama", "serving.requests=[2]"]
    content = run(tmp_path, *random, "serving.prompt_bytes=[16,32]", "serving.new_tokens=[2,4]")
    jsonschema.validate(content, json_schema())
    assert content["serving"]["speedup"]["estimate"] > 0


@pytest.mark.parametrize("paired", ["true", "false"])
def test_a_stack_in_other_tokens_answers_with_the_same_bytes(tmp_path, paired):
    result = served(tmp_path, f"paired={paired}", methods=node("full"))
    candidate, padded = row(result, "candidate"), row(result, "padded")
    assert each(candidate, "tokens_per_s") < each(padded, "tokens_per_s")
    for one in (candidate, padded):
        sent = sum(
            asked["bytes"]
            for asked in result["samples"]["serving_requests"]
            if asked["requests"] == 4
        )
        assert each(one, "bytes_per_s") == pytest.approx(sent / 4)
    assert result["serving"]["speedup"]["estimate"] > 0


def test_a_tight_budget_refuses_what_does_not_fit_and_shows_how_many_run_at_once(tmp_path):
    result = served(tmp_path, "serving.budget=60000", methods=VATTENTION)
    for name in SERVERS:
        one = row(result, name)
        assert one["refused"] >= 1
        assert one["at_once"] < 4
        assert one["kv_committed_bytes"] <= 60000
    assert result["serving"]["speedup"] is None
    assert "had no room for" in result["reasons"]["serving.speedup"]
    none = served(tmp_path, "serving.budget=1000", methods=VATTENTION)
    for name in SERVERS:
        assert (
            "for no request" in row(none, name)["reason"] or "budget" in row(none, name)["reason"]
        )


def test_a_peer_that_fails_is_empty_with_its_reason_and_the_job_goes_on(tmp_path, monkeypatch):
    def broken(*arguments: Any) -> None:
        raise KeyError("paged")

    monkeypatch.setattr(serving, "ContinuousServer", broken)
    result = served(tmp_path)
    failed = row(result, "continuous")
    assert failed["reason"] == "KeyError: 'paged'"
    assert {name for name, value in failed.items() if value is not None} == {
        "requests", "server", "rounds", "reason",
    }  # fmt: skip
    assert list(failed) == list(row(result, "padded"))
    assert result["reasons"] == {
        "serving.speedup_continuous": "continuous: KeyError: 'paged'",
        **{name: why for name, why in result["reasons"].items() if "serving" not in name},
    }
    assert result["serving"]["speedup"]["estimate"] > 0


@pytest.mark.parametrize("model", ["tiny-gemma3", "tiny-gpt2", "tiny-opt", "tiny-phi3"])
def test_other_architectures_are_served_in_every_way(tmp_path, model):
    result = served(tmp_path, "serving.requests=[3]", methods=VATTENTION, model=model)
    for name in SERVERS:
        one = row(result, name, 3)
        assert one["requests_per_s"]["estimate"] > 0, one["reason"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (["serving.requests=[]"], "serving.requests=[]"),
        (["serving.prompt_bytes=[64,100000000]"], "no held-out document is long enough"),
        (["serving.prompt_bytes=[64,4000]"], "the model has positions for 2048"),
    ],
)
def test_where_it_cannot_be_measured_it_is_null_with_a_reason(tmp_path, changes, reason):
    result = served(tmp_path, *changes)
    assert result["serving"] is None
    assert reason in result["reasons"]["serving"]
    assert result["samples"]["serving"] == []


def test_a_trace_is_served_line_by_line(tmp_path):
    file = tmp_path / "mine.csv"
    file.write_text("prompt_tokens,new_tokens\n30,4\n9,6\n")
    result = served(tmp_path, f"serving.trace={file}", "serving.requests=[2]")
    asked = result["samples"]["serving_requests"]
    assert [(one["prompt_tokens"], one["new_tokens"]) for one in asked] == [(30, 4), (9, 6)]
    file.write_text("prompt_tokens,new_tokens\n4000,4\n")
    reasons = served(tmp_path, f"serving.trace={file}", "serving.requests=[1]")["reasons"]
    assert reasons["serving"].startswith(f"serving.trace={file}: a text has 4005 tokens")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "serving.trace=.*mine.csv: cannot be read"),
        ("prompt_tokens,new_tokens\n30,none\n", "mine.csv:2: expected"),
        ("prompt_tokens,new_tokens\n30,4\n9,6\n", "serving.requests=4: serving.trace holds 2"),
    ],
)
def test_a_bad_trace_is_refused_before_a_model_is_loaded(tmp_path, monkeypatch, content, message):
    monkeypatch.setattr("trimtab.models.loading.load_model", None)
    file = tmp_path / "mine.csv"
    if content is not None:
        file.write_text(content)
    with pytest.raises(TrimtabError, match=message):
        served(tmp_path, f"serving.trace={file}")


def test_what_the_scenario_cannot_show_is_said(tmp_path):
    stack = {"vattention": {"_target_": "trimtab.vattention.VAttention"}, **node("draft")}
    warned = served(tmp_path, methods=stack)["warnings"]
    for text in (
        "scenario serving: no text is longer than a page of the KV cache",
        "scenario serving: texts of up to 10 tokens are shorter than a draft may be",
    ):
        assert sum(one.startswith(text) for one in warned) == 1
    assert served(tmp_path)["warnings"] == []
