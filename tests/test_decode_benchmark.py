"""`benchmarks/decode.py` and `scaling.py`: their arithmetic, and small runs of both."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, LlamaFileType
from gguf.quants import dequantize, quantize

from tests.conftest import ROOT, Command

BENCHMARKS = ROOT / "benchmarks"
DECODE = """
    --model tiny-llama --dtypes float32
    --contenders again small-pages llama.cpp vattention larosa all
    --repeats 3 --prompts 2 --context 40 --new-tokens 6 --out decode.json
"""
SCALING = """
    --models tiny-llama:float32 --contexts 30 600 --rows 1 3 --at-context 40 --samples 2
    --threads 1 --out scaling.json
"""
# Of tiny-llama in float32: a layer's weights, the tied embedding and the norms; keys and values.
LAYER = 64 * 64 + 2 * 32 * 64 + 64 * 64 + 3 * 160 * 64
WEIGHTS = 4 * (3 * LAYER + 320 * 64 + 7 * 64)
TOKEN = 4 * 3 * 2 * 2 * 16
# What the int8 copy of the head, with a scale and a bound for every row, spares a greedy step.
UNREAD = 320 * (64 * (4 - 1) - 2 * 4)


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that imports a module of the benchmarks, as their scripts do."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def test_contenders_run_in_turn_on_a_tiny_model(command: Command, tmp_path):
    done = command("benchmarks/decode.py", *DECODE.split())
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "decode.json").read_text("utf-8"))
    (run,) = content["runs"]
    assert [*run["missing"]] == ["llama.cpp"]
    rows = {row["contender"]: row for row in run["rows"]}
    eager, again = "transformers, eager", "transformers, eager, again"
    small, apart = "transformers, eager, 4 KB pages", "vattention, 4 KB pages"
    engine, sparse, drafting = "vattention", "larosa 0.4, vattention", "all, drafting"
    assert [*rows] == [eager, again, small, apart, engine, sparse, drafting]
    for row in rows.values():
        assert [sample["tokens"] for sample in row["samples"]] == [5, 5, 5]
    # The context of a step is what precedes its newest token, and that token: 41 to 45 tokens.
    assert rows[eager]["step_bytes"] == WEIGHTS + 43 * TOKEN
    assert rows[engine]["step_bytes"] == WEIGHTS - UNREAD + 43 * TOKEN
    assert rows[sparse]["weight_bytes"] < WEIGHTS - UNREAD
    assert {rows[name]["same_text"] for name in (again, small, apart, engine)} == {1}
    assert rows[eager]["speedup"] == {"estimate": 1, "low": 1, "high": 1}
    assert rows[drafting]["tokens_per_step"] >= rows[sparse]["tokens_per_step"] == 1
    assert rows[eager]["work_ms_per_step"] == {}
    assert rows[eager]["exact_logits"] is None
    assert all(1 <= rows[name]["exact_logits"] <= 320 for name in (engine, sparse, drafting))
    for name in (engine, sparse, drafting):
        row, work = rows[name], rows[name]["work_ms_per_step"]
        steps = sum(sample["steps"] for sample in row["samples"])
        whole = sum(sample["ms"] for sample in row["samples"])
        assert sum(work.values()) == pytest.approx(whole / steps, rel=1e-3)
        assert min(work.values()) >= 0
        assert (work["transforms"] > 0) == (name != engine)
    assert len(run["read"]["bytes_per_s"]) == 3
    for shown in (*rows, "llama.cpp is absent: "):
        assert shown in done.stdout
    assert (tmp_path / "decode.png").stat().st_size > 10_000


def test_parts_are_measured_once_and_only_together(command: Command, tmp_path):
    first = command("benchmarks/scaling.py", *SCALING.split(), "--parts", "context")
    assert first.returncode == 0, first.stderr
    file = tmp_path / "scaling.json"
    before = json.loads(file.read_text("utf-8"))["models"]["tiny-llama, float32"]
    assert [*before] == ["context"]

    second = command("benchmarks/scaling.py", *SCALING.split())
    assert second.returncode == 0, second.stderr
    after = json.loads(file.read_text("utf-8"))["models"]["tiny-llama, float32"]
    assert [*after] == ["context", "rows", "threads"]
    assert after["context"] == before["context"]
    steps = ["transformers", "vattention", "larosa 0.4, vattention"]
    for part, values in {"context": [30, 600], "rows": [1, 3], "threads": [1]}.items():
        found = after[part]["rows"]
        assert [(row[part], row["step"]) for row in found] == [
            (v, s) for v in values for s in steps
        ]
        assert {len(row["samples_us"]) for row in found} == {2}
        assert {row["same_tokens"] for row in found if row["step"] != steps[2]} == {1}
        for row in found:  # of the timed steps, and of none before
            assert bool(row["work_ms"]) == (row["step"] != steps[0])
            if row["work_ms"]:
                mean = sum(row["samples_us"]) / 2 / 1e3
                assert sum(row["work_ms"].values()) == pytest.approx(mean)
                assert min(row["work_ms"].values()) >= 0
                assert row["work_ms"]["outside"] < mean
    sizes = [row["step_bytes"] for row in after["rows"]["rows"] if row["step"] == "vattention"]
    assert sizes == [WEIGHTS + 40 * TOKEN, WEIGHTS + 3 * 40 * TOKEN]
    assert "**tiny-llama, float32, by threads**" in second.stdout
    assert second.stdout.count("Where a step's milliseconds go") == 3
    assert (tmp_path / "scaling.png").stat().st_size > 10_000

    other = command("benchmarks/scaling.py", *SCALING.split(), "--samples", "4")
    assert other.returncode == 1
    assert other.stderr.endswith(
        "error: --out scaling.json: measured with samples 2; name another file, or remove it\n"
    )


def test_the_floor_of_a_draft_is_that_of_its_steps(monkeypatch, parts):
    rounds = parts("decode_parts.rounds")
    made = parts("decode_parts.continuation").Continuation(10.0, 20, 5, "x" * 42)

    class Memory:
        huge_share = 1.0

        def __call__(self) -> float:
            return 1e6

    monkeypatch.setattr(rounds, "Reader", lambda device: Memory())
    one = parts("decode_parts.contenders").Contender("one", lambda ids: made, lambda: 400, 2)
    (row,) = rounds.measure([one], [[1] * 39], 2, 0)["rows"]
    # 400 bytes of weights and, on average, 49.5 tokens of context; 5 steps for 20 tokens.
    assert row["floor_ms_per_token"] == pytest.approx(1e3 * (400 + 2 * 49.5) * 5 / 20 / 1e6)
    assert row["floor_share"]["estimate"] == pytest.approx(499e-3 * 5 / 10)
    assert row["tokens_per_step"] == 4
    assert row["ms_per_byte"]["estimate"] == pytest.approx(10 / 40)


def test_a_gguf_file_is_copied_in_another_type(parts, tmp_path):
    source, target = tmp_path / "source.gguf", tmp_path / "target.gguf"
    matrix = np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32)
    writer = GGUFWriter(source, "llama")
    writer.add_file_type(LlamaFileType.MOSTLY_Q8_0)
    writer.add_context_length(77)
    writer.add_token_list(["a", "b", "c"])
    apart = quantize(matrix, GGMLQuantizationType.Q8_0)
    writer.add_tensor("matrix", apart, raw_dtype=GGMLQuantizationType.Q8_0)
    writer.add_tensor("vector", matrix[0])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    write = parts("decode_parts.llama_cpp").write_gguf
    kinds = LlamaFileType.MOSTLY_F16, GGMLQuantizationType.F16
    assert write(source, target, *kinds) == 3 * 64 * 2 + 64 * 4
    copy = GGUFReader(target)
    assert copy.fields["general.file_type"].contents() == LlamaFileType.MOSTLY_F16
    assert copy.fields["llama.context_length"].contents() == 77
    assert copy.fields["tokenizer.ggml.tokens"].contents() == ["a", "b", "c"]
    found = {tensor.name: tensor for tensor in copy.tensors}
    expected = dequantize(apart, GGMLQuantizationType.Q8_0).astype(np.float16)
    np.testing.assert_array_equal(found["matrix"].data, expected)
    np.testing.assert_array_equal(found["vector"].data, matrix[0])
    assert found["vector"].data.dtype == np.float32


def test_a_table_takes_its_place_in_a_file(parts, tmp_path: Path):
    insert, file = parts("result_tables").insert, tmp_path / "RESULTS.md"
    file.write_text("a\n<!-- x -->\nold\n<!-- end of x -->\nb\n", "utf-8")
    insert(file, "x", "new \\1\n")
    assert file.read_text("utf-8") == "a\n<!-- x -->\nnew \\1\n<!-- end of x -->\nb\n"
    with pytest.raises(ValueError, match="has 0 places for y"):
        insert(file, "y", "")


@pytest.mark.parametrize("place", ["decode", "scaling", "control"])
def test_the_results_have_a_place_for_every_table(place):
    assert (BENCHMARKS / "RESULTS.md").read_text("utf-8").count(f"<!-- {place} -->\n") == 1
