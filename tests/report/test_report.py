"""The files of a report and what they hold."""

import csv
import io
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.report.cases import ERROR, budgeted, compressing, result, serving, sparse, written
from trimtab.errors import TrimtabError
from trimtab.evaluation.run import RANDOM
from trimtab.evaluation.schema import SCHEMA
from trimtab.evaluation.work import TextTime
from trimtab.report import build, build_report
from trimtab.report.__main__ import main as report_main
from trimtab.report.data import csv_table
from trimtab.report.derive import derived
from trimtab.report.load import load_jobs
from trimtab.report.notices import warnings
from trimtab.report.pages import inline
from trimtab.report.table import beside_table, main_table, markdown

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture
def sweep(tmp_path) -> Path:
    jobs = [
        result("baseline", (1.0, 0.95, 1.05), lost=0, same=True),
        result("quick", (1.5, 1.4, 1.6)),
        ERROR,
        result("slow p=1", (0.8, 0.75, 0.85)),
        *(result(f"m{number}") for number in range(8)),
    ]
    return written(tmp_path / "sweep", jobs)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_jobs_are_in_the_order_they_ran(sweep):
    labels = [job.label for job in load_jobs(sweep)]
    assert labels == ["baseline", "quick", "broken", "slow p=1", *[f"m{n}" for n in range(8)]]


def test_a_report_of_a_job_is_of_that_job_alone(tmp_path):
    written(tmp_path, [result("below")])
    (tmp_path / "result.json").write_text(json.dumps(result("above")))
    assert [job.label for job in load_jobs(tmp_path)] == ["above"]


def test_pictures_that_there_is_nothing_for_any_more_are_removed_and_others_stay(tmp_path):
    rich = sparse(budgeted(serving(compressing("adaptivocab", 0.01, 0.02), (2.0, 1.9, 2.1))))
    pair = [result("larosa"), result("both", methods=("adaptivocab", "larosa"))]
    written(tmp_path, [result("baseline"), rich, *pair])
    own = {
        "serving_comparison.png", "prompt_compression.png", "ablation_waterfall.png",
        "sparsity_by_layer_1.png", "vocabulary_operating_points_1.png",
    }  # fmt: skip
    text = build_report(tmp_path).read_text()
    assert all(f"]({name})" in text for name in own)
    assert own <= names(tmp_path / "report")
    (tmp_path / "1" / "result.json").unlink()
    (tmp_path / "report" / "mine.png").touch()
    text = build_report(tmp_path).read_text()
    assert not any(name in text for name in own)
    assert names(tmp_path / "report") & {*own, "mine.png"} == {"mine.png"}


def test_pictures_of_a_job_have_the_number_of_its_folder(tmp_path):
    first = written(tmp_path / "first", [result("a"), result("b"), sparse(result("c"))])
    shutil.rmtree(first / "1")
    assert "](sparsity_by_layer_2.png)" in build_report(first).read_text()
    second = written(tmp_path / "second", [sparse(result("d"), layers=4)])
    text = build_report(first, second, out=tmp_path / "out").read_text()
    assert "](sparsity_by_layer_1.png)" in text
    assert "](sparsity_by_layer_2.png)" in text
    assert "](sparsity_by_layer_0.png)" in build_report(first / "2").read_text()


def test_a_job_that_ends_while_a_report_is_built_is_in_it(monkeypatch, tmp_path):
    written(tmp_path, [result("first")])
    builds = []

    def write(jobs, target, *_):
        builds.append([job.label for job in jobs])
        if len(builds) == 1:
            (tmp_path / "1").mkdir()
            (tmp_path / "1" / "result.json").write_text(json.dumps(result("second")))

    monkeypatch.setattr(build, "_write", write)
    build_report(tmp_path)
    assert builds == [["first"], ["first", "second"]]


@pytest.mark.parametrize(
    ("name", "age", "more"),
    [("error.json", -1, 0), ("repeat.json", 1, 0), ("error.json", 1, 1), ("result.part", -1, 1)],
)
def test_plots_wait_for_the_last_job_of_a_sweep(tmp_path, name, age, more):
    """An error that is older than the command is of a job that is run again."""
    written(tmp_path, [result("first"), ERROR])
    left = (tmp_path / "1" / "error.json").rename(tmp_path / "1" / name)
    begun = tmp_path / "command.json"
    begun.write_text('{"jobs": 2}')
    os.utime(begun, (left.stat().st_mtime + age,) * 2)
    build_report(tmp_path)
    text = build_report(tmp_path, last_draws=True).read_text()
    assert ("1 more to come, and then the plots" in text) == bool(more)
    pictures = list((tmp_path / "report").glob("*.png"))
    assert bool(pictures) == ("![" in text) == (not more)
    page = (tmp_path / "report" / "report.html").read_text()
    assert ("<svg" in page) == (not more)
    assert "The numbers" in page


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("environment", None),
        ("environment", {}),
        ("kernel", None),
        ("methods", None),
        ("speed", {"speedup": 1.1}),
        ("speed", {"speedup": {"estimate": 0, "low": 1, "high": 1}}),
        ("speed", {"speedup": {"estimate": math.nan, "low": 1, "high": 1}}),
        ("quality", {"bits_per_byte": {"baseline": 1, "difference": {"estimate": "1"}}}),
    ],
)
def test_a_result_without_what_every_result_has_is_damaged(sweep, name, value):
    file = sweep / "3" / "result.json"
    content = json.loads(file.read_text("utf-8"))
    content[name] = value
    file.write_text(json.dumps(content), "utf-8")
    report = build_report(sweep).read_text("utf-8")
    assert "| `3` | **failed**: result.json is damaged: " in report


def test_failed_jobs_are_shown_as_failed(sweep):
    text = build_report(sweep).read_text("utf-8")
    assert "12 jobs, 1 failed." in text
    assert "- `broken`: it broke here | there\n" in text
    assert "| `broken` | **failed**: it broke here \\| there |" in text
    assert f"`python evaluate.py resume={sweep}`" in text


def test_artifacts_that_jobs_lack_are_made_before_they_are_resumed(tmp_path):
    typed = ["methods=larosa", "++methods.larosa.tokens=5000", "++methods.adaptivocab.size=9"]
    more = ["model=hub", "model.name=/a b", "quality.windows=2", "on_missing=error", "artifacts=x"]
    lacking = ERROR | {"type": "MissingArtifactError", "overrides": [*typed, *more]}
    jobs = [lacking, lacking, lacking | {"overrides": ["experiment=demo", "on_missing=error"]}]
    text = build_report(written(tmp_path, jobs)).read_text()
    made = "methods=larosa methods.larosa.tokens=5000 model=hub 'model.name=/a b' artifacts=x"
    first, second, then = text.partition("What to do next")[2].split("\n- ")[1:4]
    assert first.endswith(f": `python calibrate.py {made}`")
    assert second.endswith(": `python evaluate.py experiment=demo on_missing=calibrate`")
    assert then.startswith("Run what failed again: `python evaluate.py resume=")


def test_what_a_setting_failed_by_is_to_be_corrected_and_not_run_as_it_is(tmp_path):
    glob = ERROR | {"type": "ConfigError", "message": "corpus.glob=/no/*.md: no file matches"}
    misfit = ERROR | {"label": "gpt", "type": "MisfitError", "message": "no layers are left"}
    jobs = [{**glob, "label": name} for name in "abc"]
    text = build_report(written(tmp_path / "refused", [*jobs, misfit])).read_text()
    assert "- Correct `corpus.glob` and run `a` and 2 more again\n" in text
    assert "- Correct what was refused and run `gpt` again\n" in text
    assert "resume=" not in text
    text = build_report(written(tmp_path / "both", [glob, ERROR])).read_text()
    assert "- Correct `corpus.glob` and run `broken (0)` again\n- Run what failed again" in text


def test_a_sweep_of_failures_alone_is_a_report_without_pictures(tmp_path):
    text = build_report(written(tmp_path, [ERROR])).read_text()
    assert "1 job, 1 failed." in text
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## Failed", "## What to do next", "## All figures", "## How to read this"
    ]  # fmt: skip
    assert not list((tmp_path / "report").glob("*.png"))


@pytest.mark.parametrize(
    "text",
    [
        '{"status": "ok", "lab',
        "",
        "[]",
        "{}",
        "\xff",
        pytest.param("[" * 100_000, id="deep"),
        '{"status": "error", "label": "x", "message": 1e999}',
        '{"status": "error", "label": "x", "message": 1' + "0" * 400 + "}",
    ],
)
def test_a_damaged_result_is_a_failed_job_beside_the_healthy_ones(sweep, text):
    (sweep / "3" / "result.json").write_text(text, "latin-1")
    report = build_report(sweep).read_text("utf-8")
    assert "| `3` | **failed**: result.json is damaged: " in report
    assert "`quick`: **faster than the unmodified model**" in report
    assert "result.json is damaged" in (sweep / "report" / "results.csv").read_text("utf-8")


def test_a_folder_in_place_of_a_result_is_a_failed_job_beside_the_healthy_ones(sweep):
    (file := sweep / "3" / "result.json").unlink()
    file.mkdir()
    report = build_report(sweep).read_text("utf-8")
    assert "| `3` | **failed**: result.json is damaged: " in report
    assert "`quick`: **faster than the unmodified model**" in report


def test_jobs_of_a_sweep_without_a_result_are_missed(sweep):
    names = sorted((one.name for one in sweep.iterdir() if one.name.isdigit()), key=int)
    command: dict[str, Any] = {
        "arguments": [],
        "folder": "/",
        "command": "evaluate",
        "sweeper": "-",
    }
    jobs = {name: [f"seed={name}"] for name in names}
    (sweep / "command.json").write_text(json.dumps(command | {"jobs": len(jobs), "started": jobs}))
    assert "no result" not in build_report(sweep).read_text("utf-8")
    (sweep / "3" / "result.json").unlink()
    told = build_report(sweep).read_text("utf-8")
    assert f"{sweep}: 1 of the sweep's jobs has no result; unless it still runs: `python" in told
    assert f"resume={sweep}`" in told


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("methods", [1]), ("environment", {}), ("packages", None), ("seed", []), ("status", []),
        ("overrides", 7), ("overrides", True), ("overrides", "abc"), ("overrides", None),
        ("label", []), ("label", {}), ("label", None),
        ("reasons", "x"), ("reasons", 3), ("reasons", [None]), ("reasons", {"kv": 1}),
    ],
)  # fmt: skip
def test_an_edited_result_is_damaged(sweep, key, value):
    file = sweep / "3" / "result.json"
    content = json.loads(file.read_text())
    place = content["environment"] if key in ("packages", "seed") else content
    place[key] = value
    file.write_text(json.dumps(content))
    assert "| `3` | **failed**: result.json is damaged: " in build_report(sweep).read_text("utf-8")


def test_a_result_of_another_schema_is_left_out_by_name_and_the_rest_is_reported(sweep):
    file = sweep / "3" / "result.json"
    file.write_text(json.dumps({"schema": 3, "status": "ok", "label": "old"}))
    text = build_report(sweep).read_text("utf-8")
    assert f"## Left out\n\n- {file} has schema 3, expected {SCHEMA}: measure it again" in text
    assert "12 jobs" not in text
    assert "`old`" not in text
    assert "`quick`: **faster than the unmodified model**" in text
    assert f"schema 3, expected {SCHEMA}" in (sweep / "report" / "report.html").read_text("utf-8")


@pytest.mark.parametrize("key", ["label", "overrides"])
def test_an_edited_error_is_damaged(sweep, key):
    (sweep / "3" / "result.json").unlink()
    (sweep / "3" / "error.json").write_text(json.dumps(ERROR | {key: 7}))
    assert "| `3` | **failed**: error.json is damaged: " in build_report(sweep).read_text("utf-8")


def test_a_text_that_no_file_holds_is_escaped(tmp_path):
    broken = ERROR | {"message": "caf\udce9.txt cannot be read"}
    folder = written(tmp_path, [result("larosa", overrides=["corpus.glob=\udce9"]), broken])
    (folder / "2\udce9").mkdir()
    (folder / "2\udce9" / "error.json").write_text("{")
    text = build_report(folder).read_text("utf-8")
    assert "`broken`: caf\\udce9.txt cannot be read" in text
    assert "corpus.glob=\\udce9" in text
    assert "`2\\udce9`: error.json is damaged" in text


def test_a_schema_that_is_a_text_is_shown_as_one(sweep):
    file = sweep / "3" / "result.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"schema": str(SCHEMA)}))
    assert f"has schema '{SCHEMA}', expected {SCHEMA}" in build_report(sweep).read_text("utf-8")


def test_a_result_that_names_no_schema_is_left_out_too(sweep):
    file = sweep / "3" / "result.json"
    content = json.loads(file.read_text())
    del content["schema"]
    file.write_text(json.dumps(content))
    assert f"{file} has schema None, expected {SCHEMA}" in build_report(sweep).read_text("utf-8")


def test_where_all_results_are_of_another_schema_the_command_says_so(report, tmp_path):
    written(tmp_path, [result("old") | {"schema": 3}])
    done = report(tmp_path)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert f"{tmp_path / '0' / 'result.json'} has schema 3, expected {SCHEMA}" in line


def test_every_row_has_every_column(sweep):
    lines = markdown(main_table(load_jobs(sweep))).replace("\\|", "").splitlines()
    assert len({line.count("|") for line in lines}) == 1


def test_what_was_not_measured_is_a_dash_and_what_no_job_has_no_column(tmp_path):
    jobs = load_jobs(written(tmp_path, [result("larosa"), sparse(result("sparse"))]))
    names, _, row, _ = markdown(main_table(jobs)).splitlines()
    cells = dict(zip(names.split(" | "), row.split(" | "), strict=True))
    assert (cells["dropped share"], cells["tokens saved"], cells["steps saved"]) == (
        "-", "12.3%", "34.5%"
    )  # fmt: skip
    assert "perplexity" not in cells


def test_the_unmodified_model_s_own_row_is_the_control_with_what_was_found(sweep):
    text = build_report(sweep).read_text("utf-8")
    assert "| `baseline` | 1.000 [0.950, 1.050] | control: no difference found |" in text


def test_what_was_found_is_the_first_that_a_table_shows(tmp_path):
    beside = beside_table(jobs := load_jobs(written(tmp_path, [result("larosa")])))
    assert beside is not None
    assert main_table(jobs).heads[:3] == ("stack", "speedup", "verdict")
    assert beside.heads[:2] == ("stack", "speedup per byte of text")
    without = result("vattention") | {"speed": None}
    jobs = load_jobs(written(tmp_path / "without", [without]))
    assert main_table(jobs).heads[:2] == ("stack", "verdict")


def test_the_csv_holds_every_scalar_under_its_dotted_name(sweep):
    rows = list(csv.DictReader(io.StringIO(csv_table(load_jobs(sweep)))))
    assert rows[1]["speed.speedup.low"] == "1.4"
    assert rows[1]["methods"] == "quick"
    assert rows[1]["derived.bits_increase.estimate"] == "0.008"
    assert rows[2]["status"] == "error"
    assert not any(name.startswith(("samples", "reasons")) for name in rows[0])


def test_no_column_of_the_csv_is_empty_for_every_job(tmp_path):
    jobs = load_jobs(written(tmp_path, [result("larosa"), sparse(result("sparse"))]))
    rows = list(csv.DictReader(io.StringIO(csv_table(jobs))))
    assert [row["sparsity.achieved"] for row in rows] == ["", "0.1"]
    assert not {"sparsity", "energy", "environment.gpu"} & rows[0].keys()
    assert rows[0].keys() >= {"status", "label", "methods"}


def test_the_json_holds_all_jobs_without_samples_and_the_machines(sweep):
    build_report(sweep)
    content = json.loads((sweep / "report" / "comprehensive_benchmark_results.json").read_text())
    assert content["schema"] == 1
    assert [job["label"] for job in content["jobs"]] == [job.label for job in load_jobs(sweep)]
    assert content["jobs"][1]["speed"]["speedup"]["low"] == 1.4
    assert not any("samples" in job for job in content["jobs"])
    (machine,) = content["machines"]
    assert machine["cpu"] == "A CPU"
    assert len(machine["labels"]) == 11


def test_warnings_are_told_before_all_figures(tmp_path):
    busy = result("busy") | {"warnings": ["texts are shorter than a page"]}
    loaded, apart = result("loaded"), result("apart")
    loaded["environment"]["load"] = {"busy": True, "reason": "load average 3"}
    apart["speed"]["paired"] = False
    asking = result("asking") | {"generation": {"set_aside": {"suppress_tokens": [5, 6]}}}
    again = busy | {"label": "again"}
    text = build_report(written(tmp_path, [busy, loaded, apart, asking, again])).read_text()
    warned = text.partition("## Which stack")[0]
    assert "- `busy` and `again`: texts are shorter than a page\n" in warned
    assert "- `loaded`: the machine was busy: load average 3\n" in warned
    assert "- `apart`: unpaired" in warned
    assert "of tiny asks for `suppress_tokens=[5, 6]`: set aside for both" in warned
    assert warned.count("- ") == 4


def test_warnings_that_differ_in_numbers_alone_are_one(tmp_path):
    said = "the machine was busy: {} of 2 cores (over 10%), int8, torch 2.13.{}; others seen: 3"
    jobs = [
        result(name) | {"warnings": [said.format(time, version)]}
        for name, time, version in (
            ("a", "1.64", 0), ("b", "1,037", 0), ("c", "1.02", 0), ("d", "9.5", 0), ("e", "1.02", 1)
        )
    ]  # fmt: skip
    assert warnings(load_jobs(written(tmp_path, jobs))) == [
        f"`a`, `b`, `c` and `d`: {said.format('1.02 to 1,037', 0)}",
        f"`e`: {said.format('1.02', 1)}",
    ]
    assert warnings(load_jobs(written(tmp_path / "two", jobs[:2]))) == [
        f"`a` and `b`: {said.format('1.64 and 1,037', 0)}"
    ]


@pytest.mark.parametrize(
    ("huge", "told"),
    [(900, "in huge pages"), (500, "partly in huge pages"), (100, "in ordinary pages")],
)
def test_the_report_says_what_pages_the_weights_were_in(tmp_path, huge, told):
    job = result("quick")
    job["memory"]["huge_page_bytes"] = huge
    assert (
        f"2 threads, weights {told}; torch 2" in build_report(written(tmp_path, [job])).read_text()
    )


@pytest.mark.parametrize(
    ("gpu", "device", "told"),
    [
        ("A GPU", "cuda:0", False),
        ("A GPU", None, False),  # a job that does not say
        ("A GPU", "cpu", True),
        (None, "cpu", True),
    ],
)
def test_the_pages_of_weights_on_a_gpu_are_not_told(tmp_path, gpu, device, told):
    job = result("quick")
    job["environment"]["gpu"] = gpu
    if device:
        job["device"] = device
    text = build_report(written(tmp_path, [job])).read_text()
    assert ("pages; torch 2" in text) == told
    assert "; torch 2" in text


def test_what_a_stack_holds_of_memory_is_added_up_beside_the_unmodified_model(tmp_path):
    job = serving(result("vattention", committed=3_000_000), (2.0, 1.9, 2.1))
    job["memory"]["parameter_bytes"] = {"baseline": 500e6, "candidate": 520e6}
    job["kv"]["dynamic_bytes"] = 2_000_000
    job["engine"] = {"head_copy_bytes": 28_000_000}
    plain = result("baseline")
    plain["memory"]["parameter_bytes"] = {"baseline": 500e6, "candidate": 500e6}
    text = build_report(written(tmp_path, [plain, job])).read_text()
    table = text.partition("## Memory, MB")[2].partition("\n## ")[0].splitlines()
    assert (
        "| `vattention` | 500.0 → 520.0 | 28.0 | 2.0 → 3.0 | 502.0 → 551.0 | 32.0 → 16.0 "
        "| 532.0 → 564.0 |"
    ) in table
    assert "| `baseline` | 500.0 → 500.0 | - | 0.0 → 0.0 | 500.0 → 500.0 | - | - |" in table
    told = "more memory in all while serving (weights, copy of the head, KV cache): 564 MB"
    assert f"cost: 6% {told} instead of 532" in text
    assert "in all 564 MB with weights and copy of the head instead of 532" in text
    assert derived(job | {"speed": None})["derived"]["one_text_bytes"] is None


def test_without_a_dynamic_cache_the_memory_per_byte_is_null(tmp_path):
    job = result("quick")
    assert derived(job)["derived"]["kv_bytes_per_byte"] == {"baseline": 20.0, "candidate": 20.0}
    for name in ("dynamic_bytes", "committed_bytes"):
        without = job | {"kv": job["kv"] | {name: None}}
        assert derived(without)["derived"]["kv_bytes_per_byte"] is None
        report = build_report(written(tmp_path / name, [without, result("slow")]))
        content = json.loads((report.parent / "comprehensive_benchmark_results.json").read_text())
        first, second = (one["derived"]["kv_bytes_per_byte"] for one in content["jobs"])
        assert first is None
        assert second is not None


def test_without_quality_its_plot_is_left_out_and_the_report_says_why(tmp_path):
    job = result("odd") | {"quality": None, "reasons": {"quality": "no text is held out"}}
    text = build_report(written(tmp_path, [job])).read_text("utf-8")
    assert "quality_versus_speed" not in text
    assert "- quality: no text is held out\n" in text
    told = "no answer, as what decides it was not measured: no text is held out"
    assert f"- the text must not change: {told}" in text


def test_of_random_weights_no_stack_is_recommended_and_every_title_says_so(tmp_path):
    jobs = [budgeted(serving(result(name, (1.5, 1.4, 1.6), methods=tuple(name)), (2.0, 1.9, 2.1)))
            for name in ("a", "ab")]  # fmt: skip
    for job in jobs:
        job["quality"] = None
        job["reasons"] = {"quality.bits_per_byte": RANDOM}
        job["overrides"] = [f"methods={job['label']}", "model=random"]
    text = build_report(written(tmp_path, jobs)).read_text()
    assert text.startswith("# Trimtab report: tiny (random weights)\n")
    assert "\n### tiny on words, A CPU, 2 threads, random weights\n" in text
    told, _, after = text.partition("## What to do next")
    assert "- No stack is recommended: the weights are random, " in told
    assert "**" not in told
    assert "Measure `ab` on your own model and text: `python evaluate.py methods=ab " in after
    titles = [line[2:].partition("]")[0] for line in text.splitlines() if line.startswith("![")]
    assert len(titles) >= 6
    assert all(title.startswith("Random weights: ") for title in titles)
    assert "bits per byte" not in "".join(titles)
    assert "none: the weights are random" in (tmp_path / "report" / "report.html").read_text()
    other = result("c", (1.5, 1.4, 1.6))
    other["model"]["fingerprint"] = "g"
    text = build_report(written(tmp_path / "mixed", [*jobs, other])).read_text()
    assert "![Random weights among the models: " in text
    assert "- speed alone: **`c" in text


def test_compression_is_told_with_its_control(tmp_path):
    jobs = [compressing("better", -0.03, -0.01), compressing("unclear", -0.03, 0.01)]
    text = build_report(written(tmp_path, [result("baseline"), *jobs])).read_text("utf-8")
    assert (
        "gained: its shorter prompts **beat a prompt that was cut**: of 1000 prompt tokens" in text
    )
    assert "cost: its shorter prompts **do not beat a prompt that was cut**" in text
    assert "0.900 bits per byte, 0.920 after a cut prompt" in text
    assert (
        "| `better` | 1000 | 800 | 0.8770 | 0.9000 | 0.9200 | -0.0200 [-0.0300, -0.0100] |" in text
    )


def test_where_the_time_of_a_text_goes_adds_up_in_the_rows_that_know(tmp_path):
    kinds = TextTime.__annotations__
    told = result("vattention") | {"engine": {"ms_per_text": dict.fromkeys(kinds, 150.25)}}
    untold = result("fused") | {"engine": {"ms_per_text": None}}
    text = build_report(written(tmp_path, [result("larosa"), told, untold])).read_text()
    table = text.partition("## Where the time of a text goes")[2].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    assert rows == ["| `vattention` " + "| 150.2 " * len(kinds) + "| 1,202.0 |"]
    page = (tmp_path / "report" / "report.html").read_text()
    assert "<h2>Where the time of a text goes</h2>" in page
    alone = build_report(written(tmp_path / "other", [result("larosa")])).read_text()
    assert "Where the time" not in alone


def test_serving_is_a_table_of_servers(tmp_path):
    job = serving(result("vattention"), (2.0, 1.9, 2.1))
    text = build_report(written(tmp_path, [job])).read_text()
    assert "gained: serving: 2.00 [1.90, 2.10] times the requests per second" in text
    assert (
        "| `vattention` | 16 | padded | 8.00 [7.20, 8.80] | 160.0 [144.0, 176.0] | "
        "8.00 [7.20, 8.80] | 50 [45, 55] | 90 [81, 99] | 32.0 | 8.0 | 0 |"
    ) in text
    _, _, table = text.partition("## Serving\n\n")
    assert table.startswith(
        "Scenario serving: requests that arrive together, under one budget of 64.0 MB for the KV "
    )


def test_figures_name_their_scenario(tmp_path):
    text = build_report(written(tmp_path, [result("vattention")])).read_text()
    notes = {part.partition("\n")[0]: part.split("\n\n")[1] for part in text.split("\n## ")[1:]}
    assert "scenario latency, one text at a time" in notes["All figures"]
    assert "scenario latency: texts run one at a time" in notes["Beside the unmodified model"]


def test_a_report_names_what_ran_for_prompts(tmp_path):
    job = sparse(result("larosa"))
    job["sparsity"]["prompt_kernel"] = "a dense product"
    report = build_report(written(tmp_path, [job]))
    told = "the kernel that ran; prompts: a dense product"
    assert f"- kernels that ran: {told}\n" in report.read_text()
    assert f"Kernels that ran: {told}<" in (report.parent / "report.html").read_text()


def test_the_summary_says_how_much_was_measured(tmp_path):
    longer = serving(result("vattention"), (2.0, 1.9, 2.1))
    longer["speed"]["rounds"]["done"] = 5
    text = build_report(written(tmp_path, [result("larosa"), longer])).read_text()
    assert (
        "These figures rest on: for speed (scenario latency, one text at a time) and greedy texts, "
        "2 prompts of 60 to 61 tokens, continued by 24 tokens, in 2 to 5 rounds; for quality, 2 "
        "windows of held-out text with 200 bytes scored, from 2 of 18 documents; for serving "
        "(scenario serving), 8 and 16 requests together, in 3 rounds."
    ) in text.partition("## What each stack")[0]


def ended(stopped_by, half_width, outliers, seed=0):
    """Return a result whose rounds of timing ended so."""
    job = result("larosa", seed=seed)
    job["speed"]["rounds"] |= {"stopped_by": stopped_by, "half_width": half_width}
    job["speed"]["outliers"] = {"baseline": outliers, "candidate": 1}
    return job


@pytest.mark.parametrize(
    ("jobs", "told"),
    [
        (
            [ended("time", 0.051, 2), ended("time", 0.12, 1)],
            "Rounds of timing ended by the time limit (`speed.seconds`), the speedup known to "
            "±5.1 to 12.0 %. 5 generations took ",
        ),
        (
            [ended("time", 0.05, 0), ended("precision", 0.028, 0), ended("time", 0.05, 0)],
            "Rounds of timing ended by the time limit (`speed.seconds`) in 2 of 3 rows, the "
            "speedup known to ±5.0 %; as the interval was narrow enough (`speed.precision`) in "
            "1 of 3 rows, the speedup known to ±2.8 %. 3 generations took ",
        ),
        (
            [ended("count", 0.05, 0, seed=0), ended("time", 0.07, 1, seed=1)],
            "Rounds of timing ended by their number (`speed.repeats`, `speed.more_repeats`) or by "
            "the time limit (`speed.seconds`), the speedup known to ±6.0 %. 3 generations took ",
        ),
    ],
    ids=["all alike", "apart", "seeds"],
)
def test_the_summary_says_why_rounds_ended_and_counts_outliers(tmp_path, jobs, told):
    report = build_report(written(tmp_path, jobs))
    assert told in report.read_text("utf-8").partition("## What each stack")[0]
    assert inline(told) in (report.parent / "report.html").read_text("utf-8")


def test_one_report_of_several_folders_names_commit_and_machine_where_they_differ(tmp_path):
    later, gpu = result("larosa", (1.2, 1.1, 1.3)), result("larosa", (1.3, 1.2, 1.4))
    later["environment"]["commit"] = "d" * 40 + "+changes"
    gpu["environment"]["gpu"] = "A GPU"
    first = written(tmp_path / "first", [result("larosa")])
    second = written(tmp_path / "second", [later, gpu])
    report = build_report(first, second, out=tmp_path / "out")
    assert report == tmp_path / "out" / "report.md"
    rows = [line for line in report.read_text().splitlines() if line.startswith("| `larosa")]
    ends = [row.split(" | ")[-2:] for row in rows[:3]]
    assert ends == [
        ["A CPU, 2 threads", f"{'c' * 12} |"],
        ["A CPU, 2 threads", f"{'d' * 12}+changes |"],
        ["A GPU", f"{'c' * 12} |"],
    ]
    assert not (first / "report").exists()


def test_a_job_that_is_in_two_folders_counts_once(tmp_path):
    sweep = written(tmp_path, [result("a"), result("b")])
    assert [job.label for job in load_jobs(sweep / "1", sweep)] == ["b", "a"]


@pytest.fixture
def report(command):
    """Run ``python -m trimtab.report``."""
    return lambda *arguments: command("-m", "trimtab.report", *map(str, arguments))


def test_the_command_compares_sweeps_and_prints_the_path(report, tmp_path):
    written(tmp_path / "one", [result("a")])
    written(tmp_path / "other", [result("b")])
    done = report("one", "other")
    assert done.stdout.strip() == "outputs/comparison/report.md"
    text = (tmp_path / done.stdout.strip()).read_text()
    assert "| `a` |" in text
    assert "| `b` |" in text


@pytest.mark.parametrize(
    ("given", "kept"), [("nope", "None"), ("module://of_mine", "module://of_mine")]
)
def test_a_backend_of_matplotlib_that_is_not_here_is_none_of_reports(fresh_command, given, kept):
    script = """
import os
import trimtab.report.build
import matplotlib
backend = matplotlib.rcParams._get_backend_or_none()
print(os.environ["MPLBACKEND"], backend, sep=",", end="")
"""
    done = fresh_command("-c", script, MPLBACKEND=given)
    assert (done.stdout, done.stderr) == (f"{given},{kept}", "")


@pytest.mark.parametrize("given", [[""], ["jobs", "--out", " "]])
def test_a_folder_of_no_name_is_not_the_current_one(given, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["trimtab.report", *given])
    with pytest.raises(SystemExit):
        report_main()
    expected = f"trimtab.report: error: {given[-1]!r}: expected a folder, not empty: is a variable"
    assert capsys.readouterr().err.startswith(expected)


@pytest.mark.parametrize("out", [[], ["--out", "file"], ["--out", "file/below"]])
def test_a_file_where_the_report_is_to_be_is_named_with_the_way_out(report, sweep, tmp_path, out):
    file = tmp_path / "file" if out else sweep / "report"
    file.touch()
    done = report(sweep, *out)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert f"{file.name} is a file; remove it, or name another folder: " in line


def test_a_folder_without_jobs_is_refused_by_name(report, sweep, tmp_path):
    (empty := tmp_path / "empty").mkdir()
    with pytest.raises(TrimtabError, match="empty holds no result.json"):
        build_report(sweep, empty, out=tmp_path / "out")
    done = report("nowhere")
    assert done.returncode == 1
    assert done.stderr == "trimtab.report: error: nowhere: there is no such folder\n"


@pytest.mark.parametrize("name", ["report.md", "results.csv", "mine.txt", "0"])
def test_a_report_goes_into_no_folder_of_other_files(sweep, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for out in (Path("docs"), None):
        (file := (out or build.COMPARISON) / name).mkdir(parents=True)
        with pytest.raises(TrimtabError, match=f"holds {name}, and no report, .*--out$"):
            build_report(sweep, sweep / "0", out=out)
        assert list(file.parent.iterdir()) == [file]


def test_a_report_that_was_cut_off_is_built_again_in_its_place(sweep, tmp_path, monkeypatch):
    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    (out := tmp_path / "out").mkdir()
    (out / ".gitkeep").touch()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(build, "csv_table", fail)
        build_report(sweep, out=out)
    assert list(out.glob("*.png"))
    (out / "mine.txt").touch()
    assert build_report(sweep, out=out) == out / "report.md"
    assert "mine.txt" in names(out)


def test_a_sweep_without_a_job_that_has_ended_is_left_out_beside_another(sweep, tmp_path):
    (begun := tmp_path / "begun").mkdir()
    (begun / "command.json").write_text("{}")
    text = build_report(sweep, begun, out=tmp_path / "out").read_text("utf-8")
    assert f"- {begun} holds no result.json and no error.json: none of its jobs has ended" in text
    assert "`quick`: **faster than the unmodified model**" in text
    with pytest.raises(TrimtabError, match="none of its jobs has ended"):
        build_report(begun)


def test_a_result_named_in_place_of_its_folder_is_not_told_to_be_removed(tmp_path):
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(TrimtabError, match="result.json is a file: name the folder of the job"):
        build_report(tmp_path / "result.json")


def test_a_report_may_go_below_the_home_folder(tmp_path, monkeypatch):
    given = []
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["trimtab.report", "~/a", "--out=~/b"])
    monkeypatch.setattr(
        "trimtab.report.build.build_report", lambda *folders, out: given.extend([*folders, out])
    )
    report_main()
    assert given == [tmp_path / "a", tmp_path / "b"]
