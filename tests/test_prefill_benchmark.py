"""`benchmarks/prefill.py`: a small run, and what it refuses."""

from __future__ import annotations

import json

import pytest

from tests.conftest import Command

SMALL = ["--model", "tiny-llama", "--prompts", "16", "8+40", "--repeats", "2", "--out", "one.json"]
COMPARED = {
    "transformers": "transformers",
    "transformers, again": "transformers",
    "transformers, larosa 0.4": "transformers",
    "vattention": "transformers",
    "larosa 0.4, vattention": "vattention",
}


def test_every_way_reads_the_same_prompts(command: Command, tmp_path):
    done = command("benchmarks/prefill.py", *SMALL)
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "one.json").read_text("utf-8"))
    assert content["command"] == ["benchmarks/prefill.py", *SMALL]
    assert [run["prompts"] for run in content["runs"]] == [[16], [8, 40]]
    for run in content["runs"]:
        rows = {row["contender"]: row for row in run["rows"]}
        assert {name: row["compared_with"] for name, row in rows.items()} == COMPARED
        for name in ("transformers, again", "vattention"):
            assert rows[name]["same_tokens"] == 1
        for name, row in rows.items():
            own, other = sum(row["samples_ms"]), sum(rows[COMPARED[name]]["samples_ms"])
            assert row["ms"]["estimate"] == pytest.approx(own / 2, rel=1e-3)
            assert row["speedup_over_it"]["estimate"] == pytest.approx(other / own, rel=1e-3)
    assert "8 + 40" in done.stdout
    assert (tmp_path / "one.png").exists()


def test_a_prompt_that_the_model_has_no_positions_for_is_refused(command: Command):
    done = command("benchmarks/prefill.py", "--model", "tiny-gpt2", "--prompts", "64", "100000")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: --prompts 100000: expected at most ")
