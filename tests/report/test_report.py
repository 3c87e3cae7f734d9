import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from trimtab.errors import TrimtabError
from trimtab.report import build_report, plots
from trimtab.report.load import load_jobs
from trimtab.report.table import csv_table, markdown_table


def content(label: str, speedup: tuple[float, float, float], lost: float = 0.01) -> dict:
    estimate, low, high = speedup
    return {
        "status": "ok",
        "label": label,
        "methods": [] if label == "baseline" else [label.split()[0]],
        "kernel": "the kernel that ran",
        "model": {"name": "tiny", "dtype": "float32"},
        "corpus": {"name": "words"},
        "environment": {
            "cpu": "A CPU", "threads": 2, "gpu": None, "commit": "c" * 40,
            "packages": {"torch": "2", "transformers": "5"},
        },
        "quality": {
            "bits_per_byte": {
                "candidate": 1.25,
                "difference": {"estimate": lost, "low": lost / 2, "high": lost * 2},
            },
            "greedy_agreement": 0.5,
        },
        "tokens": {
            "saving": 0.123,
            "prompt": {"saving": 0.2},
            "output": {"saving": 0.1},
            "steps": {"saving": 0.345},
        },
        "sparsity": None,
        "memory": {
            "parameter_bytes": {"baseline": 500, "candidate": 500},
            "huge_page_bytes": 900,
        },
        "speed": {
            "paired": True,
            "speedup": {"estimate": estimate, "low": low, "high": high},
            "decode_tokens_per_s": {"candidate": 12.345},
        },
        "samples": {"timings": [{"model": "baseline"}]},
        "reasons": {"sparsity": "none"},
    }  # fmt: skip


ERROR = {"status": "error", "label": "broken", "type": "X", "message": "it broke\nhere | there"}


@pytest.fixture
def sweep(tmp_path) -> Path:
    jobs = [
        content("baseline", (1.0, 0.95, 1.05)),
        content("quick", (1.5, 1.4, 1.6)),
        ERROR,
        content("slow p=1", (0.8, 0.75, 0.85)),
    ]
    for index, job in enumerate([*jobs, *[content(f"m{n}", (1, 0.9, 1.1)) for n in range(8)]]):
        folder = tmp_path / str(index)
        folder.mkdir()
        name = "result.json" if job["status"] == "ok" else "error.json"
        (folder / name).write_text(json.dumps(job))
    return tmp_path


@pytest.mark.parametrize(
    ("huge", "told"),
    [(900, "in huge pages"), (500, "partly in huge pages"), (100, "in ordinary pages")],
)
def test_the_report_says_what_pages_the_weights_were_in(tmp_path, huge, told):
    job = content("quick", (1.5, 1.4, 1.6))
    job["memory"]["huge_page_bytes"] = huge
    (tmp_path / "result.json").write_text(json.dumps(job))
    assert f"2 threads, weights {told}; torch 2" in build_report(tmp_path).read_text()


def test_jobs_are_in_the_order_they_ran(sweep):
    labels = [job.label for job in load_jobs(sweep)]
    assert labels == ["baseline", "quick", "broken", "slow p=1", *[f"m{n}" for n in range(8)]]


def test_the_report_says_what_the_intervals_say(sweep):
    text = build_report(sweep).read_text("utf-8")
    assert "`quick` is **faster than the unmodified model**: speedup 1.500 [1.400, 1.600]" in text
    assert "`slow p=1` is **slower than the unmodified model**" in text
    assert "`m0` is **not measurably faster or slower" in text
    assert "`baseline` is" not in text
    assert "Kernel that ran: the kernel that ran." in text
    assert "measured on A CPU, 2 threads" in text


def written(folder: Path, jobs: list[dict]) -> Path:
    for index, job in enumerate(jobs):
        (folder / str(index)).mkdir()
        name = "result.json" if job["status"] == "ok" else "error.json"
        (folder / str(index) / name).write_text(json.dumps(job))
    return folder


def ran(label: str, *overrides: str) -> dict:
    return {**content(label, (1, 0.9, 1.1)), "overrides": list(overrides)}


ALIKE = "tracking.mode=disabled"


@pytest.mark.parametrize(
    ("jobs", "labels"),
    [
        ([ran("larosa", "methods=larosa", ALIKE)], ["larosa"]),
        (
            [ran("larosa", ALIKE, "seed=0"), {**ERROR, "label": "larosa", "overrides": ["seed=1"]}],
            [f"larosa {ALIKE} seed=0", "larosa seed=1"],
        ),
        (
            [ran("x", "model=hub", "model.name=a"), ran("x", "model=hub", "model.name=b")],
            ["x model.name=a", "x model.name=b"],
        ),
        (
            [ran("x p=1", "methods=x", "++methods.x.p=1"), ran("x p=1", "methods=x", "+threads=1")],
            ["x p=1", "x p=1 threads=1"],
        ),
        # Another stack's settings say nothing about a job; what is alike is told by its folder.
        ([ran("a", "++methods.x.p=1"), ran("a", "++methods.x.p=2")], ["a (0)", "a (1)"]),
        (
            [content("a", (1, 0.9, 1.1)), ran("a", "seed=1"), ran("b", "seed=1")],
            ["a (0)", "a (1)", "b"],
        ),
    ],
)  # fmt: skip
def test_every_row_says_what_its_job_alone_has(tmp_path, jobs, labels):
    written(tmp_path, jobs)
    assert [job.label for job in load_jobs(tmp_path)] == labels
    report = build_report(tmp_path).read_text("utf-8")
    assert all(f"| `{label}` |" in report for label in labels)
    rows = csv.DictReader(io.StringIO((tmp_path / "report" / "results.csv").read_text("utf-8")))
    assert [row["label"] for row in rows] == labels


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("count", [1, 12])
def test_labels_of_any_length_and_character_are_drawn(tmp_path, count):
    odd = f"model.name=/a$b/{'long/' * 60} corpus.glob=/日本$_^/`|.txt"
    jobs = [compressing("stack", 0.01, 0.02) for _ in range(count)]
    for number, job in enumerate(jobs):
        rows = [{"layer": 0, "site": "h1", "basis": "plain", "achieved": 0.5}]
        job |= {"label": f"stack {odd} {number}", "sparsity": {"layers": rows}}
        job["vocabulary"] = {
            "quality_budget": 0.01, "operating_points": [{"ngrams": 1, "saving": 0, "increase": 0}]
        }  # fmt: skip
    build_report(written(tmp_path, jobs))
    assert len(list((tmp_path / "report").glob("*.png"))) == 4 + 2 * count


def test_a_report_of_a_job_is_of_that_job_alone(tmp_path):
    written(tmp_path, [content("below", (1, 0.9, 1.1))])
    (tmp_path / "result.json").write_text(json.dumps(content("above", (1, 0.9, 1.1))))
    assert [job.label for job in load_jobs(tmp_path)] == ["above"]


def test_what_checkpoints_ask_for_and_did_not_get_is_named_once(tmp_path):
    for index in range(3):
        asked = {"suppress_tokens": [5, 6], "guidance_scale": 2.0} if index else {}
        job = content(f"m{index}", (1, 0.9, 1.1)) | {"generation": {"set_aside": asked}}
        (tmp_path / str(index)).mkdir()
        (tmp_path / str(index) / "result.json").write_text(json.dumps(job))
    text = build_report(tmp_path).read_text()
    said = "of tiny asks for `suppress_tokens=[5, 6]`, `guidance_scale=2.0`: set aside for both"
    assert text.count(said) == text.count("asks for") == 1
    rows = list(csv.DictReader(io.StringIO(csv_table(load_jobs(tmp_path)))))
    assert [row["generation.set_aside.suppress_tokens"] for row in rows] == ["", "5 6", "5 6"]


def test_failed_jobs_are_shown_as_failed(sweep):
    assert "| `broken` | **failed**: it broke here \\| there |" in build_report(sweep).read_text()


@pytest.mark.parametrize("text", ['{"status": "ok", "lab', "", "[]", "{}", "\xff"])
def test_a_damaged_result_is_a_failed_job_beside_the_healthy_ones(sweep, text):
    (sweep / "3" / "result.json").write_text(text, "latin-1")
    report = build_report(sweep).read_text("utf-8")
    assert "| `3` | **failed**: result.json is damaged: " in report
    assert "`quick` is **faster than the unmodified model**" in report
    assert "result.json is damaged" in (sweep / "report" / "results.csv").read_text("utf-8")


def test_every_row_has_every_column(sweep):
    lines = markdown_table(load_jobs(sweep)).replace("\\|", "").splitlines()
    assert len({line.count("|") for line in lines}) == 1


def test_what_was_not_measured_is_a_dash(sweep):
    names, _, row = markdown_table(load_jobs(sweep)).splitlines()[:3]
    cells = dict(zip(names.split(" | "), row.split(" | "), strict=True))
    assert (cells["sparsity"], cells["bytes needed"]) == ("-", "-")
    assert (cells["tokens saved"], cells["steps saved"]) == ("12.3%", "34.5%")


def test_rebuilding_changes_nothing(sweep):
    def state() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (sweep / "report").iterdir()}

    build_report(sweep)
    first = state()
    build_report(sweep)
    assert state() == first
    assert set(first) == {
        "report.md", "results.csv", "all_methods_speedup_comparison.png",
        "all_methods_token_comparison.png", "quality_versus_speed.png",
    }  # fmt: skip


def test_without_quality_its_plot_is_left_out_and_the_report_says_why(tmp_path):
    reasons = {"quality": "its weights are random"}
    job = {**content("random", (1, 0.9, 1.1)), "quality": None, "reasons": reasons}
    (tmp_path / "result.json").write_text(json.dumps(job))
    text = build_report(tmp_path).read_text("utf-8")
    assert "quality_versus_speed" not in text
    assert "was **not measured**: its weights are random." in text
    assert not (tmp_path / "report" / "quality_versus_speed.png").exists()


def compressing(label: str, low: float, high: float) -> dict:
    job = content(label, (1, 0.9, 1.1))
    job["quality"]["compression"] = {
        "bits_per_byte": {
            "baseline": 0.877, "candidate": 0.9, "prompt_cut": 0.9 - (low + high) / 2,
            "difference": {"estimate": (low + high) / 2, "low": low, "high": high},
        },
        "tokens": {"baseline": 1000, "candidate": 800, "prompt_cut": 800},
        "beats_control": high < 0,
    }  # fmt: skip
    return job


def test_compression_is_told_with_its_control(tmp_path):
    jobs = [
        content("baseline", (1.0, 0.9, 1.1)),
        compressing("better", -0.03, -0.01),
        compressing("unclear", -0.03, 0.01),
        compressing("worse", 0.01, 0.03),
    ]
    for index, job in enumerate(jobs):
        (tmp_path / str(index)).mkdir()
        (tmp_path / str(index) / "result.json").write_text(json.dumps(job))
    text = build_report(tmp_path).read_text("utf-8")
    assert "`better` **beats the prompt cut**: of 1000 prompt tokens it saves 20.0%" in text
    assert "`unclear` **does not beat the prompt cut**" in text
    assert "`worse` **does not beat the prompt cut**" in text
    assert "0.900 bits per byte, 0.880 after a cut prompt" in text
    assert "+0.0200 [+0.0100, +0.0300]) and 0.877 after the whole one" in text
    table = [line for line in text.splitlines() if line.startswith("| `worse` | 1000 | 800 |")]
    assert table == [
        "| `worse` | 1000 | 800 | 0.8770 | 0.9000 | 0.8800 | +0.0200 [+0.0100, +0.0300] |"
    ]
    assert "`baseline` **" not in text
    plot = tmp_path / "report" / "prompt_compression.png"
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert f"]({plot.name})" in text
    for index in (1, 2, 3):
        (tmp_path / str(index) / "result.json").unlink()
    assert "prompt cut" not in build_report(tmp_path).read_text("utf-8")
    assert not plot.exists()


def test_the_csv_holds_every_scalar_under_its_dotted_name(sweep):
    rows = list(csv.DictReader(io.StringIO(csv_table(load_jobs(sweep)))))
    assert rows[1]["speed.speedup.low"] == "1.4"
    assert rows[1]["methods"] == "quick"
    assert rows[2]["status"] == "error"
    assert not any(name.startswith(("samples", "reasons")) for name in rows[0])


def test_the_command_rebuilds_and_prints_the_path(sweep):
    done = subprocess.run(
        [sys.executable, "-m", "trimtab.report", str(sweep)], capture_output=True, text=True
    )
    assert done.stdout.strip() == str(sweep / "report" / "report.md")


def test_a_folder_without_jobs_is_refused(tmp_path):
    with pytest.raises(TrimtabError, match="holds no result.json"):
        build_report(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "trimtab.report", str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1


def test_operating_points_are_drawn_where_there_are_any(tmp_path):
    budgeted, unlimited = content("adaptivocab", (1.1, 1.0, 1.2)), content("x", (1.0, 0.9, 1.1))
    points = [
        {"ngrams": count, "saving": saving, "bits_per_byte": 1 + rise, "base_bits_per_byte": 1.0,
         "increase": rise}
        for count, saving, rise in ((8, 0.02, 0.01), (500, 0.2, 0.3))
    ]  # fmt: skip
    budgeted["vocabulary"] = {"merged": 8, "quality_budget": 0.01, "operating_points": points}
    unlimited["vocabulary"] = {"merged": 8, "quality_budget": None, "operating_points": None}
    for index, one in enumerate([unlimited, budgeted]):
        (tmp_path / str(index)).mkdir()
        (tmp_path / str(index) / "result.json").write_text(json.dumps(one))
    text = build_report(tmp_path).read_text()
    drawn = tmp_path / "report" / "vocabulary_operating_points_1.png"
    assert drawn.read_bytes().startswith(b"\x89PNG")
    assert f"]({drawn.name})" in text
    assert not (tmp_path / "report" / "vocabulary_operating_points_0.png").exists()


def test_the_sites_of_a_sparsity_map_are_named_as_people_call_them(monkeypatch, tmp_path):
    rows = [
        {"layer": 0, "site": site, "basis": "plain", "achieved": 0.5}
        for site in ("h1", "h2", "h3", "h4")
    ]
    (tmp_path / "result.json").write_text(
        json.dumps({**content("larosa", (1.1, 1.0, 1.2)), "sparsity": {"layers": rows}})
    )
    drawn = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: drawn.append(figure))
    plots.sparsity_map(load_jobs(tmp_path)[0], tmp_path / "map.png")
    (labels,) = [[one.get_text() for one in figure.axes[0].get_yticklabels()] for figure in drawn]
    assert labels == [
        "attention input (h1)", "attention output (h2)", "MLP input (h3)", "MLP activation (h4)"
    ]  # fmt: skip


def test_what_was_dropped_is_drawn_for_every_sparse_job_and_left_out_of_the_table(tmp_path):
    job = content("larosa", (1.1, 1.0, 1.2))
    rows = [
        {"layer": layer, "site": site, "basis": basis, "achieved": 0.1 * layer}
        for site, basis in (("h1", "transform"), ("h2", "plain"))
        for layer in range(3)
    ]
    job["sparsity"] = {"achieved": 0.1, "bytes_fraction": 0.9, "layers": rows}
    for index, one in enumerate([content("baseline", (1.0, 0.9, 1.1)), job]):
        (tmp_path / str(index)).mkdir()
        (tmp_path / str(index) / "result.json").write_text(json.dumps(one))
    text = build_report(tmp_path).read_text()
    drawn = tmp_path / "report" / "sparsity_by_layer_1.png"
    assert drawn.read_bytes().startswith(b"\x89PNG")
    assert f"]({drawn.name})" in text
    assert not (tmp_path / "report" / "sparsity_by_layer_0.png").exists()
    (row,) = [r for r in csv.DictReader(io.StringIO(csv_table(load_jobs(tmp_path))))
              if r["label"] == "larosa"]  # fmt: skip
    assert row["sparsity.achieved"] == "0.1"
    assert "sparsity.layers" not in row
    (tmp_path / "1" / "result.json").unlink()
    mine = tmp_path / "report" / "mine.png"
    mine.touch()
    build_report(tmp_path)
    assert not drawn.exists()
    assert mine.exists()
