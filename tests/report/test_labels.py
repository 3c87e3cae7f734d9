"""Labels that tell every row from every other, and jobs that differ in their seed alone."""

import csv
import io
import json

import pytest

from tests.report.cases import ERROR, interval, result, written
from trimtab.report import build_report
from trimtab.report.attribution import attributions
from trimtab.report.labels import machine
from trimtab.report.load import load_jobs
from trimtab.report.seeds import rows

pytestmark = pytest.mark.usefixtures("undrawn")


def ran(label: str, *overrides: str, **changed) -> dict:
    return result(label, overrides=list(overrides), **changed)


def of_model(name: str, *overrides: str) -> dict:
    job = ran("larosa", *overrides)
    job["model"]["name"] = name
    return job


ALIKE = "quality.windows=4"


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
        (
            [ran("x p=1", "methods=x", "++methods.x.p=1", ALIKE),
             ran("[x,y] x.p=1 y.q=2", "methods=[x,y]", "++methods.x.p=1", "methods.y.q=2", ALIKE)],
            ["x", "[x,y] y.q=2"],
        ),
        ([ran("x p=1", "methods.x.p=1", ALIKE), result("y")], [f"x p=1 {ALIKE}", "y"]),
        # Of a setting that was typed twice the last counts.
        ([ran("x", "seed=0", ALIKE, "++seed=1"), ran("x", "seed=0", ALIKE)],
         ["x seed=1", "x seed=0"]),
        # Where files go is no setting of a measurement.
        ([ran("a", "tracking.mode=disabled"), ran("b", "artifacts=x")], ["a", "b"]),
        # Another stack's settings say nothing about a job; what is alike is told by its folder.
        ([ran("a", "++methods.x.p=1"), ran("a", "++methods.x.p=2")], ["a (0)", "a (1)"]),
        (
            [of_model("small"), of_model("large", "model=hub", "model.name=large")],
            ["larosa small", "larosa model=hub model.name=large"],
        ),
        ([result("a", seed=0), result("a", seed=1)], ["a seed=0", "a seed=1"]),
    ],
)  # fmt: skip
def test_every_row_says_what_its_job_alone_has(tmp_path, jobs, labels):
    written(tmp_path, jobs)
    assert [job.label for job in load_jobs(tmp_path)] == labels


def test_a_job_on_the_processor_of_a_machine_with_a_gpu_is_told_by_the_processor(tmp_path):
    jobs = []
    for device in ("cpu", "cuda:0 100 %"):
        jobs.append(result("a") | {"device": device})
        jobs[-1]["environment"]["gpu"] = "A GPU"
    found = load_jobs(written(tmp_path, jobs))
    assert [machine(job) for job in found] == ["A CPU, 2 threads", "A GPU"]


def test_what_all_rows_share_is_said_once(tmp_path):
    typed = ["++methods.x.p=1", ALIKE]
    jobs = [ran("x p=1", "methods=x", *typed), ran("[x,y] x.p=1", "methods=[x,y]", *typed)]
    text = build_report(written(tmp_path, jobs)).read_text()
    assert f"2 jobs.\n\nSettings of all rows: `x.p=1`, `{ALIKE}`.\n" in text
    assert "Settings of all" in (tmp_path / "report" / "report.html").read_text()
    assert text.partition("## What each stack")[2].count("p=1") == 0


def test_jobs_alike_in_several_sweeps_are_told_by_their_commit_or_their_sweep(tmp_path):
    later = result("b")
    later["environment"]["commit"] = "d" * 40
    first = written(tmp_path / "first", [result("a"), result("b")])
    second = written(tmp_path / "second", [result("a"), later])
    labels = [job.label for job in load_jobs(first, second)]
    assert labels == [
        "a sweep=first", f"b commit={'c' * 12}", "a sweep=second", f"b commit={'d' * 12}"
    ]  # fmt: skip


def test_sweeps_whose_folders_have_one_name_are_told_by_where_these_are(tmp_path):
    folders = [written(tmp_path / place / "out", [result("a")]) for place in ("before", "after")]
    labels = [job.label for job in load_jobs(*folders)]
    assert labels == ["a sweep=before/out", "a sweep=after/out"]


def seeded(speedup: float, seed: int, *, lost: float = 0.01, **changed) -> dict:
    return ran("larosa", "methods=larosa", f"seed={seed}", seed=seed, lost=lost,
               speedup=(speedup, speedup - 0.1, speedup + 0.1), **changed)  # fmt: skip


def test_jobs_that_differ_in_their_seed_alone_are_one_row(tmp_path):
    jobs = [seeded(2.0, 0, lost=0.01), ran("other", "seed=0"), seeded(8.0, 1, lost=0.03)]
    found = rows(load_jobs(written(tmp_path, jobs)))
    assert [row.label for row in found] == ["larosa (mean of 2 seeds)", "other seed=0"]
    mean = found[0]
    assert mean.seeds == (0, 1)
    speedup = mean.get("speed.speedup")
    assert speedup == pytest.approx({"estimate": 4.0, "low": 1.9, "high": 8.1})
    lost = mean.get("quality.bits_per_byte.difference")
    assert lost == pytest.approx({"estimate": 0.02, "low": 0.005, "high": 0.06})
    time = interval((2 + 0.5) / 2, 0.9 * 0.5, 1.1 * 2)
    assert mean.get("speed.ms_per_byte.candidate") == pytest.approx(time)
    assert mean.get("derived.time_saved.estimate") == pytest.approx(0.75)
    assert mean.get("methods") == ["larosa"]
    assert len(mean.get("samples.timings")) == 16


@pytest.mark.parametrize(
    ("verdicts", "told"),
    [(("faster", "faster"), "faster"), (("faster", "slower"), "no difference found")],
)
def test_seeds_that_disagree_found_no_difference(tmp_path, verdicts, told):
    jobs = [seeded(2.0, 0), seeded(3.0, 1)]
    for job, verdict in zip(jobs, verdicts, strict=True):
        job["speed"]["verdict"] = verdict
    (mean,) = rows(load_jobs(written(tmp_path, jobs)))
    assert mean.get("speed.verdict") == told


def test_what_one_seed_lacks_or_was_disturbed_by_is_told_of_the_mean(tmp_path):
    jobs = [seeded(2.0, 0), seeded(3.0, 1)]
    jobs[0]["serving"], jobs[1]["serving"] = {"speedup": None}, None
    jobs[1]["reasons"] = {**jobs[1]["reasons"], "serving": "no room"}
    for job, busy in zip(jobs, (False, True), strict=True):
        job["environment"]["load"] = {"busy": busy}
    (mean,) = rows(load_jobs(written(tmp_path, jobs)))
    assert mean.get("environment.load.busy") is True
    assert mean.reason("serving") == "no room"
    assert mean.reason("energy") == "no meter"


def test_samples_that_no_seed_has_are_none(tmp_path):
    jobs = [seeded(2.0, 0), seeded(3.0, 1)]
    for job in jobs:
        job["samples"]["windows"] = None
    (mean,) = rows(load_jobs(written(tmp_path, jobs)))
    assert mean.get("samples.windows") == []


@pytest.mark.parametrize("without", [(0,), (1,), (0, 1)])
def test_samples_that_a_seed_was_stored_without_stand_for_none(tmp_path, without):
    jobs = [seeded(2.0, 0), seeded(3.0, 1)]
    for seed in without:
        del jobs[seed]["samples"]
    folder = written(tmp_path, jobs)
    (mean,) = rows(load_jobs(folder))
    assert mean.get("samples") is None
    assert build_report(folder).is_file()


def test_what_one_seed_lacks_is_null_and_every_warning_is_kept(tmp_path):
    lacking = seeded(2.0, 1) | {"energy": None, "warnings": ["busy"]}
    lacking["environment"]["system"] = "another"
    having = seeded(2.0, 0) | {"energy": {"joules_per_1000_bytes": {"baseline": 2, "candidate": 1}}}
    having["environment"]["system"] = "a system"
    (mean,) = rows(load_jobs(written(tmp_path, [having, lacking])))
    assert mean.get("energy") is None
    assert mean.get("warnings") == ["busy"]
    assert mean.get("environment.system") == "a system / another"


@pytest.mark.parametrize(
    "change",
    [{"label": "larosa p=1"}, {"kernel": "x", "overrides": ["seed=1", "threads=1"]}],
)
def test_jobs_that_differ_in_more_are_rows_of_their_own(tmp_path, change):
    found = rows(load_jobs(written(tmp_path, [seeded(2.0, 0), seeded(2.0, 1) | change])))
    assert len(found) == 2
    assert not any(row.seeds for row in found)


def with_settings(job: dict, sparsity: float) -> dict:
    return job | {"settings": {"methods.larosa.sparsity": sparsity, "speed.seconds": 60.0}}


@pytest.mark.parametrize("typed", [True, False], ids=["command", "python"])
def test_seeds_of_other_settings_from_a_file_are_rows_that_say_so(tmp_path, typed):
    jobs = [with_settings(seeded(2.0, seed), sparsity) for seed, sparsity in enumerate([0.3, 0.6])]
    jobs.append(with_settings(seeded(3.0, 2), 0.6))
    for job in jobs if not typed else ():
        del job["overrides"]
    found = rows(load_jobs(written(tmp_path, jobs)))
    assert [row.seeds for row in found] == [(), (1, 2)]
    told = ["larosa sparsity=0.3", "larosa (mean of 2 seeds) sparsity=0.6"]
    assert [row.label.replace(" seed=0", "") for row in found] == told


def test_a_part_of_other_settings_from_a_file_is_none_of_the_stack_s(tmp_path):
    jobs = [result(name, methods=tuple(name.split(",")), overrides=[f"methods={name}"])
            for name in ("larosa", "vattention", "larosa,vattention")]  # fmt: skip
    jobs = [with_settings(job, 0.6) for job in jobs]
    whole = jobs[-1]["settings"]
    assert attributions(load_jobs(written(tmp_path / "alike", jobs)))[0].steps
    whole["methods.larosa.sparsity"] = 0.3
    assert not attributions(load_jobs(written(tmp_path / "other", jobs)))[0].steps


@pytest.mark.parametrize(
    ("section", "changed"),
    [("model", {"fingerprint": "g"}), ("corpus", {"digest": "e"}), ("tokens", {"baseline": 4000})],
)
def test_seeds_of_another_model_or_text_are_rows_of_their_own(tmp_path, section, changed):
    jobs = [seeded(2.0, 0), seeded(3.0, 1), seeded(4.0, 2)]
    jobs[2][section] |= changed
    found = rows(load_jobs(written(tmp_path, jobs)))
    assert [row.seeds for row in found] == [(0, 1), ()]


def ran_by(job: dict, name: str, value: str | None) -> dict:
    if name in ("kernel", "device"):
        return job | {name: value}
    job["environment"]["packages"][name] = value
    return job


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [("torch", "2.11.0", "2.12.0"), ("kernel", "avx2", "torch"), ("device", "cpu", "cuda:0"),
     ("lm-eval", None, "0.4")],
)  # fmt: skip
def test_seeds_of_another_package_kernel_or_device_are_rows_that_say_so(
    tmp_path, name, first, last
):
    jobs = [ran_by(seeded(2.0, seed), name, first if seed < 2 else last) for seed in range(3)]
    jobs.append(seeded(2.0, 3) | {"label": "other"})
    found = rows(load_jobs(written(tmp_path, jobs)))
    assert [row.seeds for row in found] == [(0, 1), (), ()]
    told = [f"larosa (mean of 2 seeds) {name}={first or 'none'}", f"larosa seed=2 {name}={last}"]
    assert [row.label for row in found] == [*told, "other seed=3"]


def test_seeds_that_another_version_of_wandb_recorded_are_one_row(tmp_path):
    jobs = [ran_by(seeded(2.0, seed), "wandb", f"0.{seed}") for seed in (0, 1)]
    (mean,) = rows(load_jobs(written(tmp_path, jobs)))
    assert mean.label == "larosa (mean of 2 seeds)"


def test_a_seed_beside_the_mean_of_others_is_told(tmp_path):
    jobs = [seeded(2.0, seed) for seed in (1, 2, 7, 8)]
    for job in jobs[2:]:
        job["overrides"] = ["methods=larosa"]
        job["options"] = [f"--config-name=seed{job['environment']['seed']}"]
    found = rows(load_jobs(written(tmp_path, jobs)))
    assert [row.label for row in found] == [
        "larosa (mean of 2 seeds)", "larosa seed=7", "larosa seed=8"
    ]  # fmt: skip


def test_a_result_from_python_is_no_seed_of_a_command_s(tmp_path):
    jobs = [ran("larosa", "seed=0"), result("larosa", seed=1)]
    assert len(rows(load_jobs(written(tmp_path, jobs)))) == 2


def test_seeds_are_averaged_over_sweeps_or_within_each_where_they_are_the_same(tmp_path):
    first = written(tmp_path / "first", [seeded(2.0, 0), seeded(3.0, 1)])
    more = written(tmp_path / "more", [seeded(4.0, 2)])
    again = written(tmp_path / "again", [seeded(5.0, 0), seeded(6.0, 1)])
    assert [row.seeds for row in rows(load_jobs(first, more))] == [(0, 1, 2)]
    found = rows(load_jobs(first, again))
    assert [row.seeds for row in found] == [(0, 1), (0, 1)]
    assert len({row.label for row in found}) == 2


def test_the_single_seeds_stay_in_the_csv_and_the_json(tmp_path):
    jobs = [seeded(2.0, 0), seeded(8.0, 1), ERROR]
    build_report(written(tmp_path, jobs))
    table = list(csv.DictReader(io.StringIO((tmp_path / "report/results.csv").read_text())))
    assert [row["label"] for row in table] == ["larosa seed=0", "larosa seed=1", "broken"]
    content = json.loads((tmp_path / "report/comprehensive_benchmark_results.json").read_text())
    assert [job["label"] for job in content["jobs"]] == [row["label"] for row in table]
    (mean,) = content["rows"]
    assert (mean["label"], mean["seeds"]) == ("larosa (mean of 2 seeds)", [0, 1])
    assert "3 jobs, 1 failed." in (tmp_path / "report/report.md").read_text()


def test_the_samples_of_all_seeds_count_for_the_attribution(tmp_path):
    jobs = [
        ran(label, f"methods={label}", f"seed={seed}", seed=seed, methods=methods)
        for label, methods in (("a", ("a",)), ("b", ("b",)), ("ab", ("a", "b")))
        for seed in (0, 1)
    ]
    (time, *_) = attributions(rows(load_jobs(written(tmp_path, jobs))))
    (together,) = (effect for effect in time.effects if effect.kind == "interaction")
    assert together.change == pytest.approx(0)
    assert together.low is not None
