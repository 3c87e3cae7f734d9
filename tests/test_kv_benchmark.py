"""`benchmarks/kv.py`: its trace, its accounting, and a run of all parts in a tiny shape."""

from __future__ import annotations

import importlib
import json
import random
import re
import runpy
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, Command, tiny
from trimtab.errors import TrimtabError

BENCHMARKS = ROOT / "benchmarks"
SHIPPED = BENCHMARKS / "data" / "kv-trace.json"
# Computed by hand: 2 layers of keys and values, 2 heads x 16 entries of 4 bytes.
TOKEN_BYTES = 2 * 2 * 2 * 16 * 4
PAIRS = ((100, 30), (40, 60), (200, 1))
TINY = """
    --layers 2 --kv-heads 2 --heads 4 --head-dim 16 --dtype float32 --max-len 1300
    --page-group 4096 --layout slot --budgets 0.000233 --lengths 30 60 --calls 3 --samples 3
    --batch 2 --context 40 --decode-layers 2 --model tiny-llama --model-batch 2
    --model-context 20 --new-tokens 5 --repeats 2
"""


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that imports a module of the benchmark, as its script does."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return lambda name: importlib.import_module(f"kv_parts.{name}")


def write(path: Path, *pairs: tuple[Any, Any]) -> Path:
    sequences = [{"prompt_tokens": prompt, "output_tokens": output} for prompt, output in pairs]
    path.write_text(json.dumps({"sequences": sequences}), "utf-8")
    return path


def test_the_shipped_trace_is_the_first_one_drawn(parts):
    draw = random.Random(0)
    drawn = []
    for _ in range(16):
        total = draw.randint(200, 4000)
        output = draw.randint(total // 10, total // 2)
        drawn.append((total - output, output))
    trace = parts("trace").Trace.load(SHIPPED, 8192)
    assert [*zip(trace.prompts, trace.outputs, strict=True)] == drawn


def test_a_trace_is_played_with_one_arrival_per_step(parts, tmp_path):
    trace = parts("trace").Trace.load(write(tmp_path / "trace.json", (5, 1), (2, 4), (3, 1)), 8)
    assert [*trace.steps()] == [{0: 5}, {0: 6, 1: 2}, {1: 3, 2: 3}, {1: 4, 2: 4}, {1: 5}, {1: 6}]
    assert trace.lengths == [6, 6, 4]


@pytest.mark.parametrize(
    ("pair", "reason"),
    [
        ((0, 3), "sequence 1 has prompt_tokens=0 and output_tokens=3; expected integers above 0"),
        ((4, "3"), "prompt_tokens=4 and output_tokens='3'; expected integers above 0"),
        ((True, 3), "prompt_tokens=True"),
        ((60, 41), "sequence 1 has 101 tokens; expected at most --max-len 100"),
    ],
)
def test_an_invalid_sequence_is_refused_by_its_index(parts, tmp_path, pair, reason):
    path = write(tmp_path / "trace.json", (60, 40), pair)
    with pytest.raises(TrimtabError, match=re.escape(reason)):
        parts("trace").Trace.load(path, 100)


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"sequences": 3}', '{"sequences": []}', '{"sequences": [{"prompt_tokens": 3}]}'],
)
def test_a_file_that_is_not_a_trace_is_refused_by_name(parts, tmp_path, text):
    path = tmp_path / "trace.json"
    path.write_text(text, "utf-8")
    with pytest.raises(TrimtabError, match=re.escape(f"--trace {path}: ")):
        parts("trace").Trace.load(path, 100)


@pytest.mark.parametrize(
    ("device", "held", "peak"), [("cpu", 100, 100), ("cpu", 100, 110), ("cuda", 90, 110)]
)
def test_a_count_that_agrees_with_arithmetic_passes(parts, device, held, peak):
    parts("weighing").check_agreement("slot", 100, held, peak, 10, device)


@pytest.mark.parametrize(
    ("device", "held", "peak"),
    [
        ("cpu", 99, 100), ("cpu", 101, 101), ("cpu", 100, 99), ("cpu", 100, 111),
        ("cuda", 89, 100), ("cuda", 111, 110), ("cuda", 100, 89), ("cuda", 100, 111),
    ],
)  # fmt: skip
def test_a_count_that_disagrees_with_arithmetic_is_an_error(parts, device, held, peak):
    with pytest.raises(TrimtabError, match=f"slot: .* {held} bytes held and {peak} at the peak"):
        parts("weighing").check_agreement("slot", 100, held, peak, 10, device)


def test_a_part_without_memory_is_skipped_with_a_remedy(parts):
    lacking = parts("setting").lacking
    options = Namespace(device="cpu")
    assert lacking(2**20, options, "lower --batch") is None
    assert lacking(2**60, options, "lower --batch").endswith("; lower --batch")


def test_generations_compare_by_the_same_settings_without_a_token_that_ends_them(
    monkeypatch, parts
):
    loaded = tiny()
    own = loaded.model.generation_config
    loaded.tokenizer.eos_token = own.eos_token_id = None
    own.suppress_tokens, own.cache_implementation = [*range(97, 123)], "static"
    generating = parts("generating")
    monkeypatch.setattr(generating, "load_model", lambda config: loaded)
    options = Namespace(
        device="cpu", model="tiny-llama", seed=0,
        model_batch=2, model_context=20, new_tokens=5, repeats=2,
    )  # fmt: skip
    records = [*generating.generation(options)]
    assert [record["same_tokens_share"] for record in records] == [1, 1, 1, 1]


def test_all_parts_run_in_a_tiny_shape(command: Command, tmp_path):
    trace = write(tmp_path / "trace.json", *PAIRS)
    done = command("benchmarks/kv.py", *TINY.split(), "--trace", str(trace), "--out", "kv.json")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "kv.json").read_text("utf-8"))
    assert found["trace"] == {"prompts": [100, 40, 200], "outputs": [30, 60, 1]}
    check_memory({record["cache"]: record for record in found["memory"]})
    # 250182 bytes are 15 page rows of 32 tokens, of which the sequences need 5, 4 and 7, or 30
    # blocks of 16 tokens, of which they need 9, 7 and 13.
    assert {record["cache"]: record["sequences"] for record in found["budget"]} == {
        "static": 0,
        "virtual, slot, 4 KB": 2,
        "paged, 16 tokens a block": 3,
    }
    check_prefix(found["prefix"])
    calls = {record["call"]: record["samples_us"] for record in found["pages"]}
    assert [*calls] == ["create", "map", "protect", "unmap", "release"]
    assert {len(samples) for samples in calls.values()} == {3}
    assert [(record["layers"], record["length"]) for record in found["growth"]] == [
        (1, 30), (1, 60), (1, 30), (1, 60), (2, 30), (2, 60), (2, 30), (2, 60),
    ]  # fmt: skip
    for record, name in zip(found["reading"], ("", ", again"), strict=True):
        assert record["cache"] == f"virtual, slot, 4 KB{name}"
        assert (record["huge_share"], len(record["samples_us"])) == (0, 3)
        assert (record["first_over_it"] is None) == (name == "")
    check_throughput(found["throughput"])


def check_memory(caches: dict[str, dict[str, Any]]) -> None:
    assert len(caches) == 5
    pages = (5 + 4 + 7) * 4096 * 4  # of 32 tokens, in two planes per layer
    live = (130 + 100 + 201) * TOKEN_BYTES
    virtual = caches["virtual, slot, 4 KB"]
    assert virtual["live_bytes"] == live
    assert virtual["arithmetic_bytes"] == virtual["held_bytes"] == pages
    # No sequence ends where the next row would be prepared.
    assert virtual["peak_bytes"] == pages
    assert virtual["wasted_over_live_share"] == pytest.approx(pages / live - 1)
    assert virtual["saved_share"] == pytest.approx(1 - pages / (3 * 1300 * TOKEN_BYTES))
    assert caches["static"]["arithmetic_bytes"] == 3 * 1300 * TOKEN_BYTES
    # Padded on the left to the longest prompt, and all continued to the longest output.
    padded = caches["dynamic, one left-padded batch"]
    assert padded["arithmetic_bytes"] == 3 * (200 + 60) * TOKEN_BYTES
    paged = caches["paged, 16 tokens a block"]
    assert paged["held_bytes"] == (9 + 7 + 13) * 16 * TOKEN_BYTES
    assert paged["counted"] == "arithmetic"


def check_prefix(records: list[dict[str, Any]]) -> None:
    assert [record["tails"] for record in records] == ["50 to 300 tokens", "the trace's outputs"]
    # 31 pages of 32 tokens are shared, and 8 tokens of the prefix are left. So outputs of 30, 60
    # and 1 tokens end in the second, third and first page after them. 64 requests are 22 + 21 + 21.
    rows = 31 + 22 * 2 + 21 * 3 + 21 * 1
    record = records[1]
    assert record["held_bytes"] == rows * 4096 * 4
    assert record["prefix_and_tails_bytes"] == (1000 + 22 * 30 + 21 * 60 + 21 * 1) * TOKEN_BYTES
    for record in records:
        assert record["arithmetic_bytes"] == record["held_bytes"] <= record["peak_bytes"]
        ideal = record["prefix_and_tails_bytes"]
        unshared = ideal + 63 * 1000 * TOKEN_BYTES
        assert record["unshared_arithmetic_bytes"] == unshared
        assert ideal < record["held_bytes"] < unshared


def check_throughput(records: list[dict[str, Any]]) -> None:
    decoders = [record["decoder"] for record in records]
    attention = ["virtual", "virtual_kernel", "virtual_sdpa", "dynamic", "static"]
    steps = ["engine", "virtual_kernel", "virtual", "dynamic", "static"]
    assert decoders == [*attention, *steps, "virtual", "dynamic", "static", "engine"]
    for record in records[:5]:
        assert record["largest_difference"] < 1e-5
        assert len(record["samples_us"]) == 3
    for record in records[5:10]:
        assert record["same_tokens_share"] == 1
        assert len(record["samples_us"]) == 3
    for record in records[10:]:
        assert record["same_tokens_share"] == 1
        assert len(record["samples_us"]) == len(record["step_samples_us"]) == 2


def test_an_invalid_trace_ends_the_script_with_the_reason(monkeypatch, parts, tmp_path):
    trace = write(tmp_path / "trace.json", (1, 9000))
    monkeypatch.setattr(sys, "argv", ["kv.py", "--trace", str(trace)])
    with pytest.raises(SystemExit, match=r"^error: .* expected at most --max-len 8192$"):
        runpy.run_path(str(BENCHMARKS / "kv.py"), run_name="__main__")
