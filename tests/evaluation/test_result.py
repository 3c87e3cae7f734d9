"""The whole of result.json, from one run over a tiny model whose weights are declared real."""

import json
import math
import re
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

from tests.conftest import ROOT
from tests.evaluation.vocabulary import node
from trimtab.commands.check import typed
from trimtab.commands.evaluate import evaluate
from trimtab.config import METRICS, EvaluateConfig
from trimtab.errors import ArtifactError, ConfigError
from trimtab.evaluation.intervals import geometric_mean, half_width, typical, typical_ratio
from trimtab.evaluation.result import Result
from trimtab.evaluation.schema import json_schema
from trimtab.evaluation.speed import verdict
from trimtab.registry import config_folder, register
from trimtab_kernels.sparse_linear import kernel_name

OVERRIDES = [
    "methods=larosa", "methods.larosa.tokens=512", "methods.larosa.window=64",
    "methods.larosa.sparsity=0.5", "on_missing=calibrate", "quality.windows=3",
    "quality.window_bytes=256", "quality.context_bytes=32", "generation.prompts=2",
    "quality.compression_windows=3", "quality.compression_context_bytes=96",
    "quality.compression_bytes=48", "quality.out_of_domain_windows=2",
    "quality.marginal_likelihood_windows=2", "quality.marginal_likelihood_samples=4",
    "generation.prompt_bytes=40", "generation.new_tokens=6", "speed.repeats=3", "speed.warmup=1",
    "speed.seconds=0", "serving.requests=[]", "serving.prompt_bytes=[16,64]",
    "serving.new_tokens=[2,6]", "energy.blocks=0",
]  # fmt: skip

ADAPTIVOCAB = {
    "_target_": "trimtab.adaptivocab.AdaptiVocab", "size": 50, "tokens": 256,
    "validation_tokens": 128, "window": 64, "rows": "exponential",
}  # fmt: skip

# Sections that are documented as a whole.
WHOLE = [
    "artifacts", "calibration", "generation.set_aside", "reasons", "settings", "sparsity.sites",
    "vocabulary.validation", "environment.packages", "engine.ms_per_text",
]  # fmt: skip


def configured(folder: Path, *more: str) -> EvaluateConfig:
    register()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        places = [f"artifacts={folder}/artifacts", f"tracking.folder={folder}"]
        return typed(compose("evaluate", [*OVERRIDES, *places, *more]), EvaluateConfig)


def run(folder: Path, *more: str) -> dict[str, Any]:
    return evaluate(configured(folder, *more), label="test")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Return a folder that holds a tiny model, saved as if its weights meant something."""
    from tests.conftest import tiny

    root = tmp_path_factory.mktemp("evaluation")
    loaded = tiny()
    own = loaded.model.generation_config
    own.suppress_tokens, own.guidance_scale, own.max_time = [*range(97, 123)], math.inf, 0.0
    loaded.model.save_pretrained(root / "model")
    loaded.tokenizer.save_pretrained(root / "model")
    return root


@pytest.fixture(scope="module")
def hub(folder) -> list[str]:
    return ["model=hub", f"model.name={folder}/model"]


@pytest.fixture(scope="module")
def result(folder, hub) -> dict[str, Any]:
    return run(folder, *hub, "serving.requests=[2]")


def leaves(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return the dotted names of a result's fields; lists, and rows of samples, are leaves."""
    if not isinstance(value, dict):
        return {prefix.rstrip("."): value}
    found: dict[str, Any] = {}
    for name, item in value.items():
        found |= leaves(item, f"{prefix}{name}.")
    return found


def counted(kv: dict[str, Any]) -> dict[str, Any]:
    """Return what is not of pages that tensors share with whatever lies beside them."""
    return {name: value for name, value in kv.items() if not name.endswith("measured_bytes")}


def test_the_fixed_names_are_there_with_numbers(result):
    numbers = [
        "quality.bits_per_byte.baseline",
        "quality.bits_per_byte.candidate",
        "quality.bits_per_byte.difference.estimate",
        "quality.bits_per_byte.difference.low",
        "quality.bits_per_byte.difference.high",
        "quality.perplexity.baseline",
        "quality.perplexity.candidate",
        "quality.greedy_agreement.estimate",
        "tokens.baseline",
        "tokens.candidate",
        "tokens.saving",
        "tokens.steps.baseline",
        "tokens.steps.candidate",
        "tokens.steps.saving",
        "quality.out_of_domain.bits_per_byte.baseline",
        "quality.out_of_domain.bits_per_byte.candidate",
        "quality.out_of_domain.bits_per_byte.difference.estimate",
        "kv.live_bytes_per_byte.baseline",
        "kv.live_bytes_per_byte.candidate",
        "kv.live_bytes",
        "kv.committed_bytes",
        "kv.reserved_bytes",
        "kv.static_bytes",
        "kv.dynamic_bytes",
        "kv.measured_bytes",
        "kv.static_measured_bytes",
        "kv.dynamic_measured_bytes",
        "sparsity.requested",
        "sparsity.achieved",
        "sparsity.bytes_fraction",
        "speed.decode_tokens_per_s.baseline.estimate",
        "speed.decode_tokens_per_s.candidate.estimate",
        "speed.ms_per_byte.baseline.estimate",
        "speed.ms_per_byte.candidate.estimate",
        "speed.texts_per_s.baseline.estimate",
        "speed.texts_per_s.candidate.estimate",
        "speed.ttft_ms.baseline.estimate",
        "speed.ttft_ms.candidate.estimate",
        "speed.speedup.estimate",
        "speed.speedup.low",
        "speed.speedup.high",
    ]
    found = leaves(result)
    assert all(isinstance(found[name], int | float) for name in numbers)
    assert result["methods"] == ["larosa"]
    assert result["status"] == "ok"
    for name in ("model.name", "model.fingerprint", "corpus.digest", "kernel", "environment.cpu"):
        assert found[name]


def test_it_is_json_that_any_reader_takes(result):
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_what_the_checkpoint_asks_for_is_set_aside_for_both_and_named(folder, hub):
    plain = configured(folder, *hub)
    plain.methods = {}
    result = evaluate(plain, "baseline")
    assert result["quality"]["exact_match"]["estimate"] == 1
    asked = {"suppress_tokens": [*range(97, 123)], "guidance_scale": "Infinity", "max_time": 0.0}
    assert result["generation"] == {"set_aside": asked}


@pytest.mark.parametrize("model", ["hub", "random"])
@pytest.mark.parametrize("paired", ["true", "false"])
def test_every_missing_figure_has_a_reason_and_every_reason_a_missing_figure(
    folder, hub, model, paired
):
    source = hub if model == "hub" else ["model=random", "model.config=tiny-llama"]
    result = run(folder, *source, f"paired={paired}")
    missing = {name for name, value in leaves(result).items() if value is None}
    assert missing == set(result["reasons"])
    rows = [row for table in result["samples"].values() for row in table or ()]
    assert rows
    assert not [row for row in rows if isinstance(row, dict) and None in row.values()]
    if model == "random":
        assert {"quality.bits_per_byte", "quality.greedy_agreement"} <= missing
    elif paired == "false":
        assert "quality.kl_bits_per_token" in missing
    assert result["speed"]["paired"] == (paired == "true")
    unpaired = [text for text in result["warnings"] if text.startswith("paired=false")]
    assert len(unpaired) == (paired == "false")


@pytest.mark.parametrize(
    ("settings", "missing"),
    [
        ({"mode": "draft"}, {"operating_points", "validation"}),
        ({"mode": "full", "max_bpb_increase": 0.0}, set()),
        (
            {"mode": "full", "max_bpb_increase": None},
            {"quality_budget", "operating_points", "validation"},
        ),
        (
            {"mode": "input", "max_bpb_increase": None},
            {"quality_budget", "operating_points", "validation"},
        ),
    ],
)  # fmt: skip
def test_what_a_method_did_not_measure_has_a_reason_too(folder, hub, settings, missing):
    config = configured(folder, *hub)
    config.methods = {"adaptivocab": {**ADAPTIVOCAB, **settings}}
    result = evaluate(config, "adaptivocab")
    found = {name for name, value in result["vocabulary"].items() if value is None}
    assert found == missing
    jsonschema.validate(result, json_schema())
    assert "reasons" not in result["vocabulary"]
    assert {n for n, value in leaves(result).items() if value is None} == set(result["reasons"])


def test_reasons_of_methods_are_those_of_their_fields():
    result = Result()
    section = {"merged": 0, "validation": None, "deep": {"er": None, "is": 1}}
    reasons = {"validation": "no n-gram", "deep.er": "not asked for"}
    result.add({"vocabulary": {**section, "reasons": reasons}, "other": {"one": 1}})
    assert result.sections == {"vocabulary": section, "other": {"one": 1}}
    assert result.reasons == {
        "vocabulary.validation": "no n-gram",
        "vocabulary.deep.er": "not asked for",
    }


def test_every_field_is_documented_and_every_documented_field_is_there(result, folder, hub):
    found = leaves(result)
    for methods in (
        node("full"),
        node("draft") | {"vattention": {"_target_": "trimtab.vattention.VAttention"}},
        {"adaptivocab": {**ADAPTIVOCAB, "mode": "full", "max_bpb_increase": 100.0}},
    ):
        config = configured(folder, *hub)
        config.methods = methods
        more = leaves(evaluate(config, "more"))
        # Names that are new: a section may be there in one result and null in another.
        found |= {name: value for name, value in more.items() if name not in found}
    text = (ROOT / "docs" / "results.md").read_text("utf-8")
    documented = set(re.findall(r"^\| `([^`]+)`", text, flags=re.MULTILINE))
    sections, fields = set(), set()
    for name in found:
        generic = re.sub(r"\.(estimate|low|high)$", "", name)
        generic = re.sub(r"\.(baseline|candidate|prompt_cut)$", "", generic)
        generic = re.sub(r"(?<=bits_per_byte)\.(canonical|marginal)$", "", generic)
        generic = re.sub(rf"^({'|'.join(WHOLE)})\..*", r"\1", generic)
        generic = re.sub(r"\.difference$|\.ratio$", "", generic)
        missing = any(other.startswith(f"{name}.") for other in found)
        (sections if missing else fields).add(generic)
    assert fields <= documented
    of_commands = {"overrides", "options"}
    assert documented - of_commands <= fields | sections


def test_the_settings_are_all_that_the_figures_depend_on_but_the_seed(result):
    settings = result["settings"]
    assert settings["methods.larosa.sparsity"] == 0.5
    assert (settings["serving.requests"], settings["paired"]) == ([2], True)
    assert (settings["model.dtype"], settings["memory"]) == ("auto", "huge")
    assert not {one.partition(".")[0] for one in settings} & {"seed", "tracking", "artifacts"}
    assert json.loads(json.dumps(settings)) == settings


def test_the_figures_of_speed_are_those_of_the_samples_they_keep(result):
    timings = result["samples"]["timings"]
    assert len(timings) == 3 * 3 * 2  # models, repeats, prompts; the warm-up is not among them
    assert len(result["samples"]["read_bytes_per_s"]) == len(timings)
    total = {
        model: [row["total"] for row in timings if row["model"] == model]
        for model in ("baseline", "candidate", "control")
    }
    speed = result["speed"]
    for name, model in {"speedup": "candidate", "control": "control"}.items():
        assert speed[name] == typical_ratio(total["baseline"], total[model])
    assert speed["verdict"] == verdict(speed["speedup"], speed["control"])
    assert speed["rounds"] == {
        "done": 3,
        "stopped_by": "precision" if half_width(speed["speedup"]) <= 0.03 else "time",
        "half_width": half_width(speed["speedup"]),
    }
    sizes = [row["size"] for row in timings[:2]] * 3
    for model, found in speed["ms_per_byte"].items():
        per_byte = [1e3 * taken / size for taken, size in zip(total[model], sizes, strict=True)]
        assert found == pytest.approx(typical(per_byte))
        texts = typical([1 / taken for taken in total[model]])
        assert speed["texts_per_s"][model] == pytest.approx(texts)
        gaps = [row["gaps"] for row in timings if row["model"] == model]  # a token each
        rounds = [1e3 * np.array(gaps[first] + gaps[first + 1]) for first in (0, 2, 4)]
        for point in (50, 90, 99):
            expected = geometric_mean([np.percentile(one, point) for one in rounds])
            assert speed["ms_per_token"][f"p{point}"][model] == pytest.approx(expected)


def test_a_busy_machine_and_a_roofline_that_is_too_low_are_told(folder, monkeypatch):
    monkeypatch.setattr("trimtab.evaluation.load.BUSY", -1.0)
    monkeypatch.setattr("trimtab.evaluation.rounds.Reader", lambda *_: lambda: 1.0)
    result = run(folder, "model=random", "model.config=tiny-llama")
    busy, over = result["warnings"][-1], result["warnings"][0]
    assert busy == f"the machine was busy: {result['environment']['load']['reason']}"
    assert over.startswith("speed.roofline_share is over 1: ")
    assert result["speed"]["roofline_share"]["baseline"]["estimate"] > 1


def test_the_quality_figures_are_those_of_the_samples(result):
    windows = result["samples"]["windows"]
    for model in ("baseline", "candidate"):
        rows = [row for row in windows if row["model"] == model]
        bits, size, tokens = (sum(row[key] for row in rows) for key in ("bits", "bytes", "tokens"))
        assert result["quality"]["bits_per_byte"][model] == pytest.approx(bits / size)
        assert result["quality"]["perplexity"][model] == pytest.approx(2 ** (bits / tokens))


def test_a_metric_that_is_none_is_refused_before_anything_is_calibrated(folder, hub, tmp_path):
    config = configured(folder, *hub, f"artifacts={tmp_path}", "on_missing=calibrate")
    config.metrics["latency"] = "false"
    with pytest.raises(ConfigError, match="metrics.latency=false: expected the dotted name"):
        evaluate(config, "refused")
    assert not any(tmp_path.iterdir())


def test_a_perplexity_beyond_any_number_is_null_with_a_reason(tmp_path):
    from tests.conftest import tiny

    loaded = tiny()
    loaded.model.model.norm.weight.mul_(1e6)
    loaded.model.save_pretrained(tmp_path / "model")
    loaded.tokenizer.save_pretrained(tmp_path / "model")
    only = [f"~metrics.{name}" for name in METRICS if name != "likelihood"]
    result = run(tmp_path, "model=hub", f"model.name={tmp_path}/model", *only)
    assert result["quality"]["bits_per_byte"]["baseline"] > 1024
    assert result["quality"]["perplexity"] is None
    assert result["reasons"]["quality.perplexity"].startswith("it is larger than a number of 64")


def test_text_of_another_domain_is_scored_for_both_contenders(result):
    rows = result["samples"]["out_of_domain"]
    out_of_domain = result["quality"]["out_of_domain"]
    assert out_of_domain["windows"] == 2
    assert "Python" in out_of_domain["text"]
    for model in ("baseline", "candidate"):
        mine = [row for row in rows if row["model"] == model]
        assert all(row["document"].endswith(".py") for row in mine)
        bits = sum(row["bits"] for row in mine) / sum(row["bytes"] for row in mine)
        assert out_of_domain["bits_per_byte"][model] == pytest.approx(bits)
    difference = out_of_domain["bits_per_byte"]["difference"]["estimate"]
    lost = out_of_domain["bits_per_byte"]["candidate"] - out_of_domain["bits_per_byte"]["baseline"]
    assert difference == pytest.approx(lost)
    assert difference != 0


def test_another_domain_that_is_not_measured_says_why(folder, hub, monkeypatch):
    off = run(folder, *hub, "quality.out_of_domain_windows=0")
    assert off["quality"]["out_of_domain"] is None
    assert off["reasons"]["quality.out_of_domain"] == "quality.out_of_domain_windows=0"
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(folder))
    bare = run(folder, *hub)
    assert bare["quality"]["out_of_domain"] is None
    assert "this Python comes without" in bare["reasons"]["quality.out_of_domain"]


def test_a_sparse_model_differs_from_the_baseline_and_its_sparsity_is_measured(result):
    assert result["quality"]["bits_per_byte"]["difference"]["estimate"] != 0
    divergence = result["quality"]["kl_bits_per_token"]
    assert 0 < divergence["low"] <= divergence["estimate"] <= divergence["high"]
    sparsity = result["sparsity"]
    assert sparsity["bytes_fraction"] == pytest.approx(0.5, abs=0.03)
    assert sparsity["achieved"] >= 1 - sparsity["bytes_fraction"]
    assert (sparsity["dense_prefix"], sparsity["prefill"]) == (1, "sparse")
    places = [(row["site"], row["layer"]) for row in sparsity["layers"]]
    assert places == [(site, layer) for site in ("h1", "h2", "h3", "h4") for layer in range(3)]
    for name, share in sparsity["sites"].items():
        rows = [row["achieved"] for row in sparsity["layers"] if row["site"] == name]
        assert share == pytest.approx(sum(rows) / 3)
    assert result["kernel"] == kernel_name("cpu", torch.float32)
    assert sparsity["prompt_kernel"].startswith(kernel_name("cpu", torch.float32, 100))
    read = 1 + sparsity["bytes_fraction"] - (1 - sparsity["achieved"])
    if not result["kernel"].startswith("reference"):
        read = sparsity["bytes_fraction"]
    assert sparsity["bytes_read_fraction"] == pytest.approx(read)


def test_the_baseline_against_its_copy_differs_in_nothing_but_time(folder, hub):
    config = configured(folder, *hub)
    config.methods = {}
    result = evaluate(config, label="baseline")
    quality = result["quality"]
    assert quality["bits_per_byte"]["difference"] == {"estimate": 0, "low": 0, "high": 0}
    assert quality["kl_bits_per_token"] == {"estimate": 0, "low": 0, "high": 0}
    assert quality["greedy_agreement"] == {"estimate": 1, "low": 1, "high": 1}
    assert quality["exact_match"]["estimate"] == quality["exact_match"]["high"] == 1
    assert result["tokens"]["saving"] == 0
    assert result["kernel"] == "torch"
    assert result["kv"]["committed_bytes"] == result["kv"]["dynamic_bytes"]
    assert result["reasons"]["sparsity"]


def test_unpaired_and_paired_agree_on_everything_that_is_not_time(folder, hub, result):
    unpaired = run(folder, *hub, "paired=false")
    for name in ("bits_per_byte", "perplexity", "greedy_agreement", "exact_match"):
        assert unpaired["quality"][name] == result["quality"][name]
    for section in ("tokens", "sparsity"):
        assert unpaired[section] == result[section]
    assert counted(unpaired["kv"]) == counted(result["kv"])


def test_a_missing_artifact_names_the_command_that_makes_it(folder, hub):
    with pytest.raises(
        ArtifactError, match=r"calibrate.py method=larosa sparsity=0.25 .*tokens=512"
    ):
        run(folder, *hub, "on_missing=error", "methods.larosa.sparsity=0.25")


def test_pairing_is_refused_where_a_copy_does_not_fit(folder, hub, monkeypatch):
    from trimtab.evaluation import memory

    monkeypatch.setattr(memory, "_free_bytes", lambda device: 1000)
    with pytest.raises(ConfigError, match="paired=true: a second copy .* use paired=false"):
        evaluate(configured(folder, *hub), label="test")
