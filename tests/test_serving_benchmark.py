"""`benchmarks/serving.py`: its requests, and a small run."""

from __future__ import annotations

import json

import pytest

from tests.conftest import Command

ARGUMENTS = ["--model", "tiny-llama", "--requests", "3", "--repeats", "2", "--out", "serving.json"]
ENGINES = ["vattention", "larosa 0.4, vattention", "all, drafting"]


def test_all_contenders_answer_the_same_requests(command: Command, tmp_path):
    done = command("benchmarks/serving.py", *ARGUMENTS)
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "serving.json").read_text("utf-8"))
    assert content["command"] == ["benchmarks/serving.py", *ARGUMENTS]
    (run,) = content["runs"]
    prompts = sorted(one["prompt"] for one in run["requests"])
    news = sorted(one["new"] for one in run["requests"])
    assert (prompts, news) == ([32, 111, 384], [16, 39, 96])  # geometric means in the middle
    padded, again, continuous, *engines = run["rows"]
    assert [row["contender"] for row in engines] == ENGINES
    for row in run["rows"]:
        seconds = [sample["seconds"] for sample in row["samples"]]
        rate = 2 * sum(news) / sum(seconds)
        assert row["tokens_per_s"]["estimate"] == pytest.approx(rate, rel=1e-3)
        for sample in row["samples"]:
            assert len(sample["first_token_s"]) == len(news)
            assert 0 < max(sample["first_token_s"]) < sample["seconds"]
        if work := row["work_ms"]:
            assert sum(work.values()) == pytest.approx(1e3 * sum(seconds) / 2, rel=1e-3)
    for row in engines:
        assert row["work_ms"]["linear layers"] > 0
        assert row["contender"] in done.stdout.partition("Where a round's milliseconds go")[2]
    for row in (again, continuous, engines[0]):
        assert row["same_texts"] == 1
    assert padded["speedup"] == {"estimate": 1, "low": 1, "high": 1}
    assert "continuous batching" in done.stdout
    assert (tmp_path / "serving.png").exists()
