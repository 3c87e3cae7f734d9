"""benchmarks/drafting.py, from the command line on a tiny model to its table."""

from __future__ import annotations

import json

import pytest


def test_drafts_are_timed_beside_the_stack_without_them(command, tmp_path):
    out = tmp_path / "drafting.json"
    done = command(
        "benchmarks/drafting.py", "--model", "tiny-llama", "--stacks", "vattention",
        "--passages", "2", "--repeats", "2", "--prompt", "40", "--new-tokens", "20",
        "--artifacts", str(tmp_path), "--out", str(out), "--threads", "1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text("utf-8"))["rows"]
    assert [row["text"] for row in rows] == ["python docs", "python source", "random bytes"]
    for row in rows:
        without, drafted = (row["samples"][one] for one in ("without", "with drafts"))
        assert len(without) == len(drafted) == 4
        assert all(steps == 19 for _, steps in without)  # the first token comes with the prompt
        assert row["tokens_per_step"] == pytest.approx(4 * 19 / sum(steps for _, steps in drafted))
        times = [sum(seconds for seconds, _ in own) for own in (without, drafted)]
        assert row["gain"]["estimate"] == pytest.approx(times[0] / times[1])
        for one, work in row["work_ms_per_token"].items():
            assert sum(work.values()) == pytest.approx(row["ms_per_token"][one])
            assert 0 <= min(work.values()) <= max(work.values()) < row["ms_per_token"][one]
    assert "| vattention | python docs |" in done.stdout
    assert "Where a token's milliseconds go" in done.stdout
    assert "| vattention | python docs | with drafts | " in done.stdout
