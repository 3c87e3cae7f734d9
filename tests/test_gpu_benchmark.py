"""`benchmarks/gpu.py`: a small run on a CPU, what it goes on from, and the kernels it times."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from argparse import Namespace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.autograd import DeviceType

from tests.conftest import ROOT, Command
from tests.kernels.compiling import CAPABILITIES, assert_compiles
from tests.vattention.fake_driver import FakeDriver
from trimtab.errors import TrimtabError
from trimtab_kernels.decode_step import dispatch
from trimtab_kernels.decode_step.reference import decode_step

BENCHMARKS = ROOT / "benchmarks"
SMALL = ["--device", "cpu", "--out", "gpu.json"]
# Of tiny-llama in float32: the linear layers by site, all weights, keys and values of a token.
SITES = [4 * 64 * (64 + 2 * 32), 4 * 64 * 64, 4 * 64 * 320, 4 * 160 * 64]
WEIGHTS = 3 * sum(SITES) + 4 * (320 * 64 + 7 * 64)
TOKEN = 4 * 3 * 2 * 2 * 16
TRANSFORM = 64 * 64 + 4 * 64


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that imports a module of the benchmark, as its script does."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return lambda name: importlib.import_module(f"gpu_parts.{name}")


def test_all_parts_run_small_and_are_measured_once(command: Command, tmp_path):
    done = command("benchmarks/gpu.py", *SMALL)
    assert done.returncode == 0, done.stderr
    file = tmp_path / "gpu.json"
    content = json.loads(file.read_text("utf-8"))
    assert content["command"] == ["benchmarks/gpu.py", *SMALL]
    (run,) = content["runs"]
    assert run["begun"] == {}
    results = {name: unit["result"] for name, unit in run["units"].items()}
    check_probe(results)
    kernels = [name for name in results if name.startswith("kernels: ")]
    assert {"kernels: 64x320", "kernels: settings 160x64"} <= {*kernels}
    for name in kernels:
        assert results[name] == {"skipped": "the Triton kernels need a GPU, or TRITON_INTERPRET=1"}
    check_steps(results)
    check_caches(results)
    shown = ("| what | measured | aim |", "64x320", "step, tiny-llama, 1 x 24 tokens, sparse 0.4")
    for text in shown:
        assert text in done.stdout
    assert "at least" not in done.stdout  # no aim is for a CPU

    again = command("benchmarks/gpu.py", *SMALL)
    assert (again.returncode, again.stdout) == (0, done.stdout)
    assert json.loads(file.read_text("utf-8")) == content


def check_probe(results: dict[str, Any]) -> None:
    assert results["probe: versions"]["environment"]["gpu"] is None
    assert results["probe: driver"] == {"skipped": "there is no driver of a GPU"}
    rates = results["probe: bandwidth"]
    assert min(*rates["read_bytes_per_s"], *rates["copy_bytes_per_s"]) > 0
    for name in ("probe: attention with cuDNN", "probe: attention without cuDNN"):
        kinds = [f"{kind}, {seen}" for kind in ("one token", "draft", "prompt")
                 for seen in ("fresh", "seen")]  # fmt: skip
        assert [*results[name]] == kinds
        assert {len(times) for times in results[name].values()} == {2}
    assert len(results["probe: eigh 32"]["seconds"]) == len(results["probe: eigh 2x8"]["seconds"])


def check_steps(results: dict[str, Any]) -> None:
    contenders = [
        "dense",
        "sparse 0.4",
        "transformers, dynamic cache",
        "transformers, static cache",
    ]
    for rows in (1, 2):
        names = [f"steps: tiny-llama, {rows} x 24 tokens, {one}" for one in contenders]
        # Two samples: the context is 23 and 24 tokens.
        dense = WEIGHTS + rows * 47 * TOKEN // 2
        for name, contender in zip(names, contenders, strict=True):
            found = results[name]["rows"]
            assert [*found] == list(dict.fromkeys(["dense", "dense, again", contender]))
            for row in found.values():
                own, other = (sum(one["samples_us"]) for one in (row, found["dense"]))
                assert row["ms"]["estimate"] == pytest.approx(own / 2e3)
                assert row["speedup"]["estimate"] == pytest.approx(other / own)
            assert found["dense"]["bytes"] == found["dense, again"]["bytes"] == dense
        kept = results[names[1]]["kept_shares"]
        assert kept == pytest.approx([0.6] * 12, abs=0.15)
        spared = sum((1 - share) * size for share, size in zip(kept, 3 * SITES, strict=True))
        expected = dense - round(spared - 6 * TRANSFORM) if rows == 1 else dense
        assert results[names[1]]["rows"]["sparse 0.4"]["bytes"] == expected


def check_caches(results: dict[str, Any]) -> None:
    calls = [one["call"] for one in results["kv: life of pages"]["calls"]]
    assert calls == ["create", "map", "protect", "unmap", "release"]
    assert [*results["kv: first touch"]["us"]] == ["first", "again"]
    for layout, tokens in (("slot", 32), ("mega", 10)):
        lengths = results[f"kv: growth, {layout}"]["lengths"]
        assert [row["length"] for row in lengths] == [30, 60]
        assert all(row["p50_us"] <= row["p99_us"] for row in lengths)
        found = results[f"kv: page boundaries, tiny-llama, {layout}"]
        assert found["tokens_per_page"] == tokens
        begins, others = found["begins_page_samples_us"], found["others_samples_us"]
        assert len(begins) >= 2
        assert len(others) > len(begins)
        medians = [float(torch.tensor(one).quantile(0.5)) for one in (begins, others)]
        ratio = found["begins_page_over_others"]["estimate"]
        assert ratio == pytest.approx(medians[0] / medians[1], rel=1e-5)
    for name in ("kv: memory", "kv: prefix"):
        held = [row["held_bytes"] for row in results[name]["caches"] if "virtual" in row["cache"]]
        assert min(held) > 0


def units_of(parts: Any, **measures: Any) -> list[Any]:
    unit = parts("unit")
    return [unit.Unit(name, measure, lambda result: []) for name, measure in measures.items()]


def test_a_unit_that_fails_is_noted_and_the_rest_goes_on(parts, tmp_path, capsys):
    record, running, summary = parts("record"), parts("running"), parts("summary")
    file, ran = tmp_path / "one.json", list[str]()

    def failing() -> dict[str, Any]:
        ran.append("failing")
        raise RuntimeError("CUDA out of memory\nand more")

    def passing() -> dict[str, Any]:
        ran.append("passing")
        return {"us": 1.0, "failed": {"a part": "ValueError: no"}}

    units = units_of(parts, failing=failing, nan=lambda: {"us": float("nan")}, passing=passing)
    kept = record.Record(file, {}, 0)
    assert running.run_units(units, kept, running.started(), None) == []
    found = json.loads(file.read_text("utf-8"))["runs"][0]["units"]
    assert found["failing"]["error"] == "RuntimeError: CUDA out of memory"
    assert "in failing" in found["failing"]["traceback"]
    assert found["nan"]["error"].startswith("ValueError")
    assert found["passing"]["result"]["us"] == 1
    assert summary.has_failures(units, kept)
    told = summary.summary(units, kept, [])
    assert "- failed: failing: RuntimeError: CUDA out of memory" in told
    assert "- failed: passing, a part: ValueError: no" in told

    began = running.started()  # another command tries again what failed, and only that
    again = record.Record(file, {}, 0)
    assert running.run_units(units, again, began, None) == []
    assert ran == ["failing", "passing", "failing"]
    # A process that goes on for a command does not try again what failed in it.
    assert running.run_units(units, record.Record(file, {}, 0), began, None) == []
    assert ran == ["failing", "passing", "failing"]


def test_a_unit_that_a_run_ended_during_comes_last(parts, tmp_path):
    record, running = parts("record"), parts("running")
    file, ran = tmp_path / "one.json", list[str]()

    def killed() -> dict[str, Any]:
        raise KeyboardInterrupt

    def noting(name: str) -> Any:
        return lambda: ran.append(name) or {}

    units = units_of(parts, one=killed, two=noting("two"))
    with pytest.raises(KeyboardInterrupt):
        running.run_units(units, record.Record(file, {}, 0), running.started(), None)
    units = units_of(parts, one=noting("one"), two=noting("two"))
    assert running.run_units(units, record.Record(file, {}, 0), running.started(), None) == []
    assert ran == ["two", "one"]


def test_nothing_is_begun_after_the_limit(parts, tmp_path):
    record, running, summary = parts("record"), parts("running"), parts("summary")
    units = units_of(parts, one=dict, two=dict)
    kept = record.Record(None, {}, 0)
    left = running.run_units(units, kept, running.started() - 10, 9.0)
    assert left == units
    assert summary.summary(units, kept, left) == "- left: one; two"


def test_other_code_is_measured_anew(parts, tmp_path, monkeypatch):
    record = parts("record")
    file = tmp_path / "one.json"
    kept = record.Record(file, {"samples": 2}, 0)
    kept.keep("one", 1.0, {"us": 1})
    assert record.Record(file, {"samples": 2}, 0).result("one") == {"us": 1}
    assert record.Record(file, {"samples": 3}, 0).result("one") is None
    digest = record.code_digest()
    source = tmp_path / "code"
    source.mkdir()
    (source / "new.py").write_text("", "utf-8")
    monkeypatch.setattr(record, "FOLDERS", (*record.FOLDERS, source))
    assert record.code_digest() != digest
    assert record.Record(file, {"samples": 2}, 0).result("one") is None


@pytest.mark.parametrize("text", ["", "[]", '{"runs": 3}', '{"runs": [{"units": {}}]}'])
def test_a_file_of_something_else_is_refused_by_name(parts, tmp_path, text):
    file = tmp_path / "one.json"
    file.write_text(text, "utf-8")
    with pytest.raises(TrimtabError, match=re.escape(f"--out {file}: ")):
        parts("record").Record(file, {}, 0)
    assert file.read_text("utf-8") == text


def test_another_process_goes_on_where_the_gpu_is_lost(parts, monkeypatch):
    running, asked = parts("running"), []
    kept = parts("record").Record(None, {}, 0)

    def lost() -> None:
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lost)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(running.os, "execve", lambda *call: asked.append(call))
    monkeypatch.setattr(sys, "orig_argv", ["python", "benchmarks/gpu.py", "--limit", "9"])
    running.run_units(units_of(parts, one=dict), kept, 12.5, None)
    ((program, command, variables),) = asked
    assert (program, command) == (sys.executable, [program, "benchmarks/gpu.py", "--limit", "9"])
    monkeypatch.setattr(os, "environ", variables)
    assert running.started() == 12.5


def test_the_calls_of_a_driver_are_timed_by_its_rules(parts):
    driver = FakeDriver()
    times = parts("probe").driver_calls(driver, 3)
    driver.check_clean()
    counts = {name: len(samples) for name, samples in times.items()}
    each = dict.fromkeys(("create", "map", "set access", "unmap", "release"), 3)
    once = dict.fromkeys(("reserve", "set access of all", "unmap of all", "free"), 1)
    assert counts == each | once


def test_a_profile_is_summed_by_kernel(parts):
    def event(key: str, count: int, time: float, kind: Any = DeviceType.CUDA) -> Any:
        return SimpleNamespace(
            key=key, count=count, self_device_time_total=time, device_type=kind
        )  # fmt: skip

    events = [event("a", 2, 3.0), event("b", 1, 5.0), event("aten::mm", 1, 9.0, DeviceType.CPU)]
    expected = {"kernels": 3, "busy_us": 8.0, "by_name_us": {"b": 5.0, "a": 3.0}}
    assert parts("profiling").summed(events) == expected


SAME = {"estimate": 1.0, "low": 0.9, "high": 1.1}


@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("model", ["llama2-7b", "llama-1b"])
def test_aims_are_for_one_shape_on_a_gpu(parts, device, model):
    aimed = (device, model) == ("cuda", "llama2-7b")
    sizes = parts("sizes").SIZES["cuda"]
    options = Namespace(device=device, sizes=sizes)

    step = {"ms": SAME, "speedup": SAME, "of_read_share": SAME, "profile": None}
    profile = {"kernels": 7, "busy_us": 1500, "by_name_us": {}}
    told = parts("step_rows").step_rows
    expected = {
        "dense": "at least 80% of the rate of reading",
        "sparse 0.4": "at least 1.30 x dense",
        "sparse 0.5": "at least 1.50 x dense",
        "transformers, static cache": "–",
    }
    for contender, aim in expected.items():
        found = {"rows": {"dense, again": step, contender: step | {"profile": profile}}}
        rows = told(options, f"{model}, 1 x 512 tokens", contender, found)
        assert [row.aim for row in rows] == [aim if aimed else "–"]
        assert "7 kernels busy 1.500 ms" in rows[0].found
    eight = told(options, f"{model}, 8 x 512 tokens", "dense", {"rows": {
        "dense, again": step, "dense": step}})  # fmt: skip
    assert eight[0].aim == "–"

    row = {"us": 2.0, "of_read_share": 0.5, "speedup": SAME}
    own = row | {"over_own_dense": SAME, "over_peer": SAME}
    products = {"library": row, "library, again": row, "ours, 0.4 dropped": own}
    products |= {f"TEAL's design, 0.4 dropped, {tile}": row | {"us": us} for tile, us in
                 (("16x256", 9.0), ("32x128", 7.0))}  # fmt: skip
    rows = parts("kernel_rows").product_rows(options, "8x8", f"{model} q", {"rows": products})
    at = next(one for one in rows if one.what == "8x8, ours, 0.4 dropped")
    assert at.aim == ("at least 1.50 x itself dense, more than 1 x TEAL's design" if aimed else "–")
    assert "TEAL's design 7.0 µs" in at.found

    times = {f"{kind}_{p}_us": 1.0 for kind in ("begins_page", "others") for p in ("p50", "p99")}
    found = {"begins_page_over_others": SAME, **times}
    (one,) = parts("boundary").boundary_rows(options, f"{model}, slot", found)
    assert one.aim == ("at most 1.05 x others" if aimed else "–")


@pytest.mark.parametrize("shape", ["tiny-llama", "tiny-qwen2", "tiny-gemma2"])
@torch.inference_mode()
def test_a_made_up_plan_is_executed_as_it_says(parts, shape):
    """In the memory of the dense weights, which it holds all numbers of."""
    models, sparse_plan = parts("models"), parts("sparse_plan")
    torch.manual_seed(0)
    model = models.Models(Namespace(device="cpu", seed=0)).get(shape)
    before = {name: one.clone() for name, one in model.named_parameters()}
    plan, cache = models.plan_of(model, 8), models.random_cache(model, 1, 8)
    rows = torch.tensor([[7] * 3, [0] * 3, [5, 6, 7]])
    found, kept = sparse_plan.larosa_plan(plan, 0.5, lambda one: decode_step(one, *cache, *rows))
    assert kept == pytest.approx([0.5] * len(kept), abs=0.15)
    for dense, layer in zip(plan.layers, found.layers, strict=True):
        (projection,) = layer.projections
        assert projection.weight.data_ptr() == dense.projections[0].weight.data_ptr()
        numbers = torch.cat([one.weight.flatten() for one in dense.projections])
        assert torch.equal(projection.weight.flatten().sort().values, numbers.sort().values)
        turned = layer.attention_input.transform * layer.attention_input.transform_scale
        assert torch.allclose(turned.T @ turned, torch.eye(len(turned)), atol=0.05)
    assert all(torch.equal(before[name], one) for name, one in model.named_parameters())
    assert dispatch.unavailable(model.dtype, model.device) is None
    logits = dispatch.executor(found, *cache, batch_invariant=False).step(*rows)
    expected = decode_step(found, *cache, *rows)
    close = (logits - expected).norm(dim=-1) < 1e-3 * expected.norm(dim=-1)
    assert close.sum() >= 2  # a near-tie with a threshold may fall the other way


@pytest.mark.parametrize("lacking", ["the second is elsewhere", "inputs come first"])
def test_weights_that_lie_apart_have_no_other_shape(parts, lacking):
    from trimtab_kernels.decode_step import Linear

    whole = torch.zeros(6, 4)
    second = torch.zeros(3, 4) if lacking == "the second is elsewhere" else whole[3:]
    linears = [Linear(whole[:3].t()), Linear(second.t())]
    if lacking == "inputs come first":
        linears = [Linear(torch.zeros(4, 3))]
    with pytest.raises(ValueError, match="do not lie side by side"):
        parts("sparse_plan").inputs_first(linears)


def test_a_model_without_room_says_what_it_needs(parts, monkeypatch):
    setting = importlib.import_module("kv_parts.setting")
    monkeypatch.setattr(setting, "_available_bytes", lambda device: 2**30)
    options = Namespace(device="cpu", seed=0)
    with pytest.raises(TrimtabError, match=r"needs 12\.\d\d GiB, .* leave out --model llama2-7b"):
        parts("models").Models(options).get("llama2-7b")


def test_the_kernels_are_right_on_the_interpreter():
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.gpu_benchmark_cases"],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_the_launches_build_for_gpus(parts, capability, monkeypatch, tmp_path):
    from tests.kernels.test_triton import sources

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel, types, constants, _ = next(sources("bf16"))
    launches = parts("launches").LAUNCHES
    for launch in (launches[0], launches[-1]):
        chosen = {
            "ROWS": launch.rows,
            "BLOCK_ROWS": launch.block_rows,
            "BLOCK_COLUMNS": launch.block_columns,
        }
        assert_compiles(kernel, types, constants | chosen, launch.options, capability)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_the_peer_builds_for_gpus_with_atomics(parts, capability, monkeypatch, tmp_path):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    teal = parts("teal")
    types = {"x_ptr": "*bf16", "weight_ptr": "*bf16", "out_ptr": "*fp32", "threshold": "fp32"}
    types |= dict.fromkeys(("width", "columns"), "i32")
    rows, columns, warps = teal.TILES[0]
    constants = {"BLOCK_ROWS": rows, "BLOCK_COLUMNS": columns}
    signature = {**types, **dict.fromkeys(constants, "constexpr")}
    source = ASTSource(fn=teal.teal_kernel, signature=signature, constexprs=constants)
    options = {"num_warps": warps, **teal.OPTIONS}
    built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    assert built.asm["cubin"].startswith(b"\x7fELF")
    assert re.search(r"^\s*(?:@\S+\s+)?(?:atom|red)\.\S+\.add\.f32", built.asm["ptx"], re.MULTILINE)


def test_the_products_of_a_model_are_those_of_its_plan(parts):
    """The models' shapes are told apart from their configs; here, from their weights."""
    models, products = parts("models"), parts("products")
    model = models.Models(Namespace(device="cpu", seed=0)).get("tiny-gemma2")
    plan = models.plan_of(model, 4)
    expected = set()
    for linears in parts("sparse_plan").sites(plan.layers[0]):
        weights = [one.weight for one in linears[1]]
        expected |= {tuple(one.shape) for one in weights}
        expected.add((len(weights[0]), sum(one.shape[1] for one in weights)))
    assert {one[:2] for one in products.products(["tiny-gemma2"])} == expected
