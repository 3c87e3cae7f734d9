"""`benchmarks/control.py`: a small run, which goes on where it stopped."""

from __future__ import annotations

import json

from tests.conftest import Command

ARGUMENTS = """
    --prompts 2 --new-tokens 4 --seconds 0.1 --threads 1 --out control.json
"""


def test_intervals_that_hold_are_counted_and_runs_are_done_once(command: Command, tmp_path):
    def run(*more: str):
        return command("benchmarks/control.py", *ARGUMENTS.split(), *more)

    first = run("--runs", "1")
    assert first.returncode == 0, first.stderr
    before = json.loads((tmp_path / "control.json").read_text("utf-8"))["runs"]
    second = run("--runs", "2")
    assert second.returncode == 0, second.stderr
    content = json.loads((tmp_path / "control.json").read_text("utf-8"))
    after = content["runs"]
    assert str(tmp_path) not in json.dumps(content)
    for state in ("idle", "busy"):
        assert [len(runs[state]) for runs in (before, after)] == [1, 2]
        assert after[state][0] == before[state][0]
        held = sum(one["speedup"]["low"] <= 1 <= one["speedup"]["high"] for one in after[state])
        assert f"| {state} | the copy's speedup | 2 | {held} ({held / 2:.0%}) |" in second.stdout
    assert after["busy"][0]["load"]["cores_beside"] > 0.05
    assert (tmp_path / "control.png").stat().st_size > 10_000

    other = run("--prompts", "3")
    assert other.returncode == 1
    expected = "--out control.json: measured with prompts 2; name another file, or remove it"
    assert other.stderr.endswith(f"error: {expected}\n")
