"""Sweeps that lose jobs and are resumed, searched or launched in parallel, as a user runs them."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from tests.conftest import ROOT, SMALL, TINY, variables
from tests.report.cases import result, written
from tests.test_cli_evaluate import FAST, METHOD, VOCABULARY
from tests.wandb_runs import runs_in
from trimtab.commands.jobs import overrides_of
from trimtab.commands.launch import launch
from trimtab.commands.parsing import parsed
from trimtab.commands.resume import unfinished
from trimtab.commands.search import objective, tell_winner
from trimtab.commands.search_space import arguments_of, size, suggest
from trimtab.commands.sweep import BASIC
from trimtab.errors import ConfigError
from trimtab.sweep_state import is_command

JOB = [*TINY, *FAST, "corpus.max_documents=40", "threads=1", "tracking.mode=disabled"]


def state(root: Path) -> dict[str, bytes]:
    """Return every file below a folder."""
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def statuses(sweep: Path) -> dict[str, str]:
    """Return how each job ended, by its folder."""
    found = {}
    for name in ("result", "error"):
        for path in sweep.glob(f"*/{name}.json"):
            assert path.parent.name not in found
            found[path.parent.name] = json.loads(path.read_text())["status"]
    return dict(sorted(found.items()))


def test_of_every_stack_one_fails_and_is_resumed(command, tmp_path):
    """LaRoSA's own artifact is damaged; with AdaptiVocab it has another."""
    made = command("calibrate.py", *JOB[:2], "corpus.max_documents=40", *SMALL)
    artifact = tmp_path / made.stdout.strip()
    tensors = artifact / "tensors.safetensors"
    whole = tensors.read_bytes()
    tensors.write_bytes(whole[:-10])

    done = command("evaluate.py", "-m", "methods=glob(*)", *JOB, *METHOD, *VOCABULARY)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    (sweep,) = tmp_path.glob("multirun/*/*")
    failed = {**dict.fromkeys("01235", "ok"), "4": "error"}
    assert statuses(sweep) == dict(sorted(failed.items()))
    table = (sweep / "report" / "report.md").read_text()
    assert table.count("**failed**") == 1
    assert "](all_methods_comprehensive_dashboard.png)" in table
    assert done.stderr.startswith(f"Folder: {sweep}\n")
    told = [line for line in done.stderr.splitlines() if line.startswith("Job ")]
    left = r" \(about [\d.]+ (s|min|h) left for the sweep\)"
    assert re.fullmatch(r"Job 0 \(0 to 5\): adaptivocab [^()]+", told[0])
    more = left.replace("sweep", "sweep, plus calibrations yet to be made")
    assert re.fullmatch(rf"Job 0 \(0 to 5\): finished after \d+ s{more}", told[1])
    assert re.fullmatch(rf"Job 4 \(0 to 5\): failed after \d+ s: .* is damaged.*{left}", told[9])
    assert re.fullmatch(r"Job 5 \(0 to 5\): finished after \d+ s", told[11])

    tensors.write_bytes(whole)
    before = state(sweep)
    resumed = command("evaluate.py", f"resume={sweep.relative_to(tmp_path)}")
    assert resumed.returncode == 0, resumed.stderr
    assert statuses(sweep) == dict.fromkeys("012345", "ok")
    labels = [json.loads(p.read_text())["label"] for p in sorted(sweep.glob("*/result.json"))]
    own = [one.removeprefix("methods.") for one in (*METHOD, *VOCABULARY)]
    drafts = [one for one in own if one.startswith("adaptivocab.")]
    assert labels == [
        " ".join(["adaptivocab", *(one.removeprefix("adaptivocab.") for one in drafts)]),
        " ".join(["all", *own]),
        "baseline",
        " ".join(["fused", *drafts]),
        "larosa tokens=512 window=64",
        "vattention",
    ]
    assert resumed.stderr.count("Job 4 (0 to 5): larosa tokens=512 window=64 (about") == 1
    assert len(re.findall("^Job ", resumed.stderr, flags=re.M)) == 2
    after = state(sweep)
    changed = {name for name in before | after if before.get(name) != after.get(name)}
    assert {name for name in changed if not name.startswith(("4/", "report/"))} == {"multirun.yaml"}
    assert before["4/.hydra/overrides.yaml"] == after["4/.hydra/overrides.yaml"]
    assert "**failed**" not in (sweep / "report" / "report.md").read_text()

    again = command("evaluate.py", "-m", f"resume={sweep}")
    assert again.returncode == 0, again.stderr
    assert f"Nothing to run: every job of {sweep} is finished" in again.stderr
    assert again.stdout == f"{sweep / 'report' / 'report.md'}\n"
    assert state(sweep) == after


def test_a_sweep_that_was_killed_goes_on_and_not_while_it_runs(command, zygote, tmp_path):
    folder = r"hydra.sweep.subdir=job-${hydra.job.num}"
    sweep = ["-m", "methods=baseline", *JOB, "seed=0,1,2", "hydra.sweep.dir=sweep", folder]
    zygote.start(str(ROOT / "evaluate.py"), *sweep, cwd=tmp_path, output=tmp_path)
    jobs = [tmp_path / "sweep" / f"job-{number}" for number in range(3)]
    deadline = time.monotonic() + 120
    while not (jobs[1] / ".hydra" / "overrides.yaml").exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    with pytest.raises(ConfigError, match="resume=.*: is still running: wait until it has ended"):
        unfinished(tmp_path / "sweep", [])
    zygote.kill()
    assert [(job / "result.json").exists() for job in jobs] == [True, False, False]
    first = state(jobs[0])
    for number in range(2):  # copies are no jobs
        shutil.copytree(jobs[0], tmp_path / "sweep" / f"job-0-old-{number}")

    resumed = command("evaluate.py", "resume=sweep/", "tracking.mode=offline")
    assert resumed.returncode == 0, resumed.stderr
    assert all((job / "result.json").exists() for job in jobs)
    assert state(jobs[0]) == first
    given = [json.loads((job / "result.json").read_text())["overrides"] for job in jobs]
    assert [one[-1] for one in given] == ["seed=0", "seed=1", "seed=2"]
    assert re.findall(r"^Job \d \(0 to 2\): baseline (seed=\d)", resumed.stderr, flags=re.M) == [
        "seed=1", "seed=2",
    ]  # fmt: skip
    first, second, _ = runs_in(tmp_path / "outputs")  # the last is the sweep's
    assert first.page["name"] == second.page["name"] == "baseline"  # repeats have one name


@pytest.mark.exhaustive
def test_a_sweep_over_options_of_the_users_is_resumed_as_it_was_started(command, tmp_path):
    """An option that is new since would shift the numbers of the jobs."""
    own = tmp_path / "mine" / "methods"
    own.mkdir(parents=True)
    for name in ("bb", "bc"):
        (own / f"{name}.yaml").write_text("defaults: [/method@vattention: vattention]\n")
    given = ["--config-dir", "mine", "methods=glob(b?)", "layout=mega", *JOB]
    done = command("evaluate.py", "-m", *given, "hydra.sweep.dir=sweep")
    assert done.returncode == 0, done.stderr
    assert "Job 1 (0 to 1): bc" in done.stderr
    assert json.loads((tmp_path / "sweep" / "command.json").read_text())["jobs"] == 2

    first = state(tmp_path / "sweep" / "0")
    result = tmp_path / "sweep" / "1" / "result.json"
    result.write_bytes(result.read_bytes()[:100])
    shutil.copy(own / "bb.yaml", own / "ba.yaml")
    resumed = command("evaluate.py", "resume=sweep")
    assert resumed.returncode == 0, resumed.stderr
    assert statuses(tmp_path / "sweep") == {"0": "ok", "1": "ok"}
    assert json.loads(result.read_text())["label"].startswith("bc")
    assert state(tmp_path / "sweep" / "0") == first


@pytest.mark.parametrize("plus", ["", "+", "++"])
def test_what_is_typed_counts_instead_of_what_the_experiment_sweeps_over(plus):
    params = {f"{plus}methods.larosa.sparsity": "0.25,0.4", "seed": "0,1"}
    typed = ["++methods.larosa.sparsity=0.5"]
    sweeper = {"_target_": BASIC, "params": params}
    hydra = OmegaConf.create({"sweeper": sweeper, "overrides": {"task": typed}})
    assert [one.input_line for one in overrides_of(hydra)] == [*typed, "seed=0,1"]


PUT_BACK = (
    "put back the file or the environment variable that sets them, or start it again in a new "
    "folder"
)


@pytest.mark.parametrize(
    ("many", "record"), [(False, ".hydra"), (True, ".hydra"), (False, "the/record"), (True, "own")]
)
def test_what_an_experiment_sets_otherwise_by_now_is_not_mixed_with_what_was_measured(
    command, tmp_path, many, record
):
    """The jobs end at a corpus that holds no text."""
    (tmp_path / "blank.txt").touch()
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    own = tmp_path / "mine" / "experiment" / "own.yaml"
    placed = f"# @package _global_\nhydra: {{output_subdir: {record}}}\n"
    own.write_text(f"{placed}speed: {{repeats: 3}}\n")
    given = ["--config-dir", "mine", "experiment=own", *TINY, "corpus=files", "corpus.glob=*.txt"]
    place = ["-m", "seed=0,1", "hydra.sweep.dir=job"] if many else ["hydra.run.dir=job"]
    started = command("evaluate.py", *given, *place, "tracking.mode=disabled")
    assert "the corpus *.txt holds no text" in started.stderr
    job = Path("job/0" if many else "job")
    own.write_text(f"{placed}speed: {{repeats: 4}}\ntracking: {{project: another}}\n")
    before = state(tmp_path)
    resumed = command("evaluate.py", "resume=job")
    assert resumed.returncode == 1
    assert resumed.stderr == (
        f"evaluate.py: error: resume=job: settings have changed since {job} was started: "
        f"speed.repeats was 3 and is 4: {PUT_BACK}\n"
    )
    assert state(tmp_path) == before
    for record in tmp_path.glob("job/**/overrides.yaml"):
        record.write_text("")  # its job was killed as it began
    resumed = command("evaluate.py", "resume=job", "tracking.mode=offline")
    assert "the corpus *.txt holds no text" in resumed.stderr


TYPED = ["generation.prompts=${oc.decode:${oc.env:N}}", "tracking.project=${oc.env:SECRET}"]


@pytest.mark.parametrize(
    "place",
    [
        [*TYPED, "hydra.run.dir=job"],
        ["-m", "generation=own", "seed=0,1", "hydra.sweep.dir=job"],
        pytest.param(
            ["-m", *TYPED, "experiment=search", "search.max_bpb_increase=null",
             "methods=larosa,vattention", "hydra.sweeper.n_trials=1", "hydra.sweep.dir=job"],
            marks=pytest.mark.exhaustive,
        ),
    ],
    ids=["typed for a job", "from a file of a sweep", "typed for a search"],
)  # fmt: skip
def test_a_variable_that_says_otherwise_by_now_is_not_mixed_with_what_was_measured(
    command, tmp_path, place
):
    """The jobs end at a corpus that holds no text, and leave no record of Hydra's."""
    (tmp_path / "blank.txt").touch()
    (tmp_path / "mine" / "generation").mkdir(parents=True)
    (tmp_path / "mine" / "generation" / "own.yaml").write_text(
        "# @package _global_\ngeneration: {prompts: '${oc.decode:${oc.env:N}}'}\n"
        "tracking: {project: '${oc.env:SECRET}'}\n"
    )
    given = ["--config-dir", "mine", *TINY, "corpus=files", "corpus.glob=*.txt"]
    given += ["tracking.mode=disabled", "hydra.output_subdir=null", *place]
    started = command("evaluate.py", *given, N="3", SECRET="hush")
    assert "the corpus *.txt holds no text" in started.stderr
    typed = (tmp_path / "job" / "command.json").read_text()
    assert '"generation.prompts": 3' in typed
    assert "hush" not in typed
    before = state(tmp_path)
    resumed = command("evaluate.py", "resume=job", N="4", SECRET="other")
    assert resumed.stderr == (
        "evaluate.py: error: resume=job: settings have changed since job was started: "
        f"generation.prompts was 3 and is 4: {PUT_BACK}\n"
    )
    assert state(tmp_path) == before
    resumed = command("evaluate.py", "resume=job", N="3", SECRET="other")
    assert "the corpus *.txt holds no text" in resumed.stderr


@pytest.mark.exhaustive
def test_a_shuffled_sweep_runs_and_resumes_the_jobs_that_were_written_down(command, tmp_path):
    given = ["methods=baseline", *JOB, "seed=shuffle(range(0,4))", "hydra.sweep.dir=sweep"]
    done = command("evaluate.py", "-m", *given)
    assert done.returncode == 0, done.stderr
    sweep = tmp_path / "sweep"
    started = json.loads((sweep / "command.json").read_text())["started"]

    def ran() -> dict[str, str]:
        results = {p.parent.name: json.loads(p.read_text()) for p in sweep.glob("*/result.json")}
        return {name: result["overrides"][-1] for name, result in sorted(results.items())}

    asked = {name: job[-1] for name, job in started.items()}
    assert ran() == asked
    assert sorted(asked.values()) == [f"seed={n}" for n in range(4)]
    for name in "13":
        (sweep / name / "result.json").unlink()
    resumed = command("evaluate.py", "resume=sweep")
    assert resumed.returncode == 0, resumed.stderr
    assert ran() == asked


def test_jobs_that_keep_no_record_of_hydras_are_measured(command, tmp_path):
    done = command(
        "evaluate.py", "-m", "methods=baseline", *TINY, *FAST, "seed=0,1", "hydra.sweep.dir=sweep",
        "hydra.output_subdir=null", "tracking.mode=disabled",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len([*tmp_path.glob("sweep/*/result.json")]) == 2
    assert "Job 1 (0 to 1): finished\n" in done.stderr


@pytest.mark.exhaustive
def test_a_job_of_its_own_is_resumed(command, tmp_path):
    job = ["methods=baseline", *TINY, *FAST, "corpus=files", "corpus.glob=*.txt"]
    (tmp_path / "0.txt").touch()
    failed = command("evaluate.py", *job, "tracking.mode=disabled", "hydra.run.dir=job")
    assert failed.returncode == 1
    assert (tmp_path / "job" / "error.json").exists()
    for number in range(10):
        text = " ".join(f"word{(number * 7 + n * n) % 97}" for n in range(500))
        (tmp_path / f"{number}.txt").write_text(text)
    resumed = command("evaluate.py", "resume=job", "tracking.mode=offline")
    assert resumed.returncode == 0, resumed.stderr
    assert not (tmp_path / "job" / "error.json").exists()
    result = tmp_path / "job" / "result.json"
    result.write_bytes(result.read_bytes()[:100])
    resumed = command("evaluate.py", "resume=job", "tracking.mode=offline")
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads(result.read_text())["status"] == "ok"
    runs = runs_in(tmp_path / "outputs")
    assert len(runs) == 2
    assert len({run.page["run_id"] for run in runs}) == 1
    before = state(tmp_path)
    again = command("evaluate.py", "resume=job")
    assert (again.returncode, again.stdout) == (0, "job/report/report.md\n")
    assert state(tmp_path) == before


@pytest.fixture
def refusal(monkeypatch, capsys, tmp_path):
    """Return the line with which arguments are refused in a folder that holds a sweep."""
    (tmp_path / "sweep").mkdir()
    started = {"arguments": ["-m", "seed=0,1"], "folder": str(tmp_path), "jobs": 2}
    (tmp_path / "sweep" / "command.json").write_text(json.dumps({**started, "sweeper": "ax"}))
    (tmp_path / "sweep" / "0").mkdir()
    elsewhere = {**started, "folder": str(tmp_path.parent), "sweeper": None}
    made = {**started, "command": "calibrate"}
    for name, content in (
        ("moved", json.dumps(elsewhere)), ("damaged", '{"arguments": ["-m"'),
        ("calibrated", json.dumps(made)),
    ):  # fmt: skip
        (tmp_path / name).mkdir()
        (tmp_path / name / "command.json").write_text(content)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")

    def refused(command: str, *arguments: str) -> str:
        monkeypatch.setattr("sys.argv", [f"{command}.py", *arguments])
        with pytest.raises(SystemExit, match="1"):
            launch(lambda config: None, command)
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return refused


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["-m", "resume=sweep", "seed=3"], "leave out seed=3; only tracking.mode and others of"),
        (["resume=sweep", "--cfg", "job"], "leave out --cfg job;"),
        (["resume=sweep"], "resume=sweep: is of ax, which cannot be resumed"),
        (["resume=nowhere"], "resume=nowhere: there is no such folder"),
        (["resume=."], "resume=.: holds no command.json: expected the folder of a sweep or a job"),
        (["resume=sweep/0"], "holds no command.json: expected the sweep's, resume=sweep"),
        (["resume="], "resume=: expected the folder of a sweep or a job of evaluate.py"),
        (["resume=moved"], "resume=moved: its paths are from /"),
        (["resume=calibrated"], "resume=calibrated: is of calibrate.py: a calibration goes on by"),
        (["resume=damaged"], "resume=damaged: command.json is damaged: start the sweep again"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_resumed_is_refused(refusal, tmp_path, arguments, expected):
    before = state(tmp_path)
    line = refusal("evaluate", *arguments)
    assert line.startswith("evaluate.py: error: resume=")
    assert expected in line
    assert state(tmp_path) == before


@pytest.mark.parametrize("arguments", [["methods=[[larosa]]"], ["-m", "methods=all,[[larosa]]"]])
def test_a_list_of_lists_is_no_stack(refusal, arguments):
    line = refusal("evaluate", *arguments)
    assert line.startswith(f"evaluate.py: error: {arguments[-1]}: is a list of lists; expected")


@pytest.mark.parametrize(
    ("name", "arguments", "refused"),
    [
        ("evaluate", ["hydra.mode=MULTIRUN", "seed=0,1"], "hydra.mode=MULTIRUN"),
        ("evaluate", ["-m", "++hydra.mode=RUN", "seed=0,1"], "++hydra.mode=RUN"),
        ("calibrate", ["hydra.mode=MULTIRUN"], "hydra.mode=MULTIRUN"),
        ("evaluate", ["experiment=own", "sparsity=0.4"], "experiment=own sets hydra.mode=MULTIRUN"),
        ("evaluate", ["-m", "experiment=own"], "experiment=own sets hydra.mode=MULTIRUN"),
        ("calibrate", ["model=own"], "model=own sets hydra.mode=MULTIRUN"),
        ("evaluate", ["experiment=within"], "hydra.mode=MULTIRUN is set by a file"),
    ],
    ids=str,
)
def test_a_sweep_is_asked_for_by_the_option_alone(refusal, tmp_path, name, arguments, refused):
    for place, text in (
        ("experiment/own", "hydra: {mode: MULTIRUN}"), ("model/own", "hydra: {mode: MULTIRUN}"),
        ("experiment/within", "defaults: [own]"),
    ):  # fmt: skip
        file = tmp_path / "mine" / f"{place}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"# @package _global_\n{text}\n")
    before = state(tmp_path)
    line = refusal(name, "--config-dir", "mine", *arguments)
    assert line == f"{name}.py: error: {refused}: leave it out, and write -m for a sweep"
    assert state(tmp_path) == before


def test_a_short_name_in_an_experiments_sweep_is_refused_with_its_full_name(refusal, tmp_path):
    own = tmp_path / "mine" / "experiment" / "own.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("# @package _global_\nhydra: {sweeper: {params: {layout: 'slot,mega'}}}\n")
    line = refusal("evaluate", "-m", "--config-dir=mine", "experiment=own", "methods=vattention")
    assert "unknown setting layout, write methods.vattention.layout; the top level has" in line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed: 3", "begin the file with # @package _global_"),
        ("# @package _global_\nsparsity: 0.2", "unknown setting sparsity, write methods.larosa.sp"),
        (
            "# @package _global_\nlarosa: {sparsity: 0.2}",
            "unknown setting larosa, write methods.l",
        ),
        ("# @package _global_\nsedd: 3", "unknown setting sedd, did you mean seed?"),
        (
            "# @package _global_\nspeed: {repeat: 3}",
            "unknown setting speed.repeat, did you mean r",
        ),
    ],
)
def test_what_an_experiment_sets_that_there_is_not_is_refused_with_its_file(
    refusal, tmp_path, text, expected
):
    own = tmp_path / "mine" / "experiment" / "own.yaml"
    own.parent.mkdir(parents=True)
    own.write_text(f"{text}\n")
    line = refusal("evaluate", "--config-dir=mine", "experiment=own", "methods=larosa")
    assert line.startswith(f"evaluate.py: error: experiment/own: {expected}")


@pytest.mark.parametrize("name", ["experiment/own", "model/mine/own", "own"])
@pytest.mark.parametrize(
    "given", [["--config-dir", "mine"], ["hydra.searchpath=[pkg://trimtab,file://mine]"]], ids=str
)
def test_a_byte_order_mark_that_hides_a_header_is_refused(refusal, tmp_path, name, given):
    file = tmp_path / "mine" / f"{name}.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("# @package _global_\nspeed: {repeats: 3}\n", "utf-8-sig")
    assert refusal("evaluate", *given, "experiment=own") == (
        f"evaluate.py: error: mine/{name}.yaml: begins with a byte-order mark, which hides its "
        "# @package from Hydra: save it as UTF-8 without it"
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("file:///nope", "file:///nope: expected a folder or package that is there"),
        ("pkg://nope", "pkg://nope: expected a folder or package that is there"),
        (
            "file://~/my",
            "file://~/my: expected a folder or package that is there: write file:///h/my",
        ),
        ("~/my", "file:///h/my: expected a folder or package that is there"),
    ],
)
def test_a_search_path_of_what_is_not_there_is_refused(refusal, monkeypatch, given, expected):
    monkeypatch.setenv("HOME", "/h")
    line = f"evaluate.py: error: hydra.searchpath={expected}"
    assert refusal("evaluate", f"hydra.searchpath=[{given}]") == line


def test_a_search_path_in_a_file_is_refused_likewise(refusal, tmp_path):
    (tmp_path / "whole.yaml").write_text(
        "defaults: [evaluate, _self_]\nhydra: {searchpath: [file:///nope]}\n"
    )
    line = refusal("evaluate", "--config-dir=.", "--config-name=whole")
    assert line.startswith("evaluate.py: error: hydra.searchpath=file:///nope: expected a folder")


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("model._target_=nope.X", "_target_=nope.X: expected the dotted name of a class: No modul"),
        ("+metrics.mine=broken.Mine", "metrics.mine=broken.Mine: expected the dotted name of a cla"
         "ss: KeyError: 'x'"),
        ("+metrics.mine=leaving.Mine", "metrics.mine=leaving.Mine: expected the dotted name of a c"
         "lass: SystemExit: no"),
        ("+metrics.mine=trimtab.evaluation.metrics.Metric", "expected a metric with a method "),
        ("+metrics.mine=trimtab.stack.Stack", "metrics.mine=trimtab.stack.Stack: expected a trimt"),
        ("~metrics.latency", "metrics.tokens=trimtab.evaluation.metrics.tokens.Tokens: needs the "
         "samples of Latency"),
    ],
)  # fmt: skip
def test_a_class_that_is_none_is_refused_in_one_line_before_a_job_has_a_folder(
    command, refusal, monkeypatch, tmp_path, argument, expected
):
    (tmp_path / "broken.py").write_text("{}['x']\n")
    (tmp_path / "leaving.py").write_text("raise SystemExit('no')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    before = state(tmp_path)
    assert expected in refusal("evaluate", "-m", argument, "seed=0,1")
    path = os.pathsep.join([str(tmp_path), variables()["PYTHONPATH"]])
    refused = command("evaluate.py", argument, PYTHONPATH=path, PYTHONDONTWRITEBYTECODE="1")
    (line,) = refused.stderr.splitlines()
    assert expected in line
    assert state(tmp_path) == before


@pytest.mark.parametrize("argument", ["corpus.glob=caf\udce9/*.md", "hydra.run.dir=\udcff"])
def test_bytes_that_are_no_text_are_refused(refusal, argument):
    line = refusal("evaluate", argument)
    assert line.startswith(f"evaluate.py: error: {argument!a}: expected text in utf-8: rename")


@pytest.mark.parametrize(
    "edited",
    [
        {"jobs": "two"}, {"arguments": "x"}, {"arguments": [1]}, {"folder": 5}, {"started": ["x"]},
        {"started": {"0": "x"}}, {"started": {"0": [1]}}, {"started": {}},
        {"jobs": -1}, {"jobs": 0}, {"jobs": 99}, {"started": {"../0": ["seed=0"]}},
        {"started": {"/0": ["seed=0"]}}, {"started": {"..": ["seed=0"]}}, {"started": {"": []}},
        {"started": {"0": ["seed=[0"]}},
        {"interpolated": ["seed=0"]}, {"interpolated": [{"overrides": [], "settings": None}]},
    ],
    ids=str,
)  # fmt: skip
def test_a_command_that_was_edited_is_damaged(refusal, tmp_path, edited):
    file = tmp_path / "sweep" / "command.json"
    sound = json.loads(file.read_text())
    sound |= {"sweeper": BASIC, "jobs": 1, "started": {"0": ["seed=0"]}}
    assert is_command(sound)
    assert is_command(sound | {"started": {"group/0": ["seed=0"]}})
    file.write_text(json.dumps(sound | edited))
    assert "command.json is damaged: start the sweep again" in refusal("evaluate", "resume=sweep")


RAN_NOTHING = "; no job was started: correct this and run it again"


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        (
            "evaluate",
            ["methods=baseline,larosa", "sparsity=0.4,1.5"],
            "larosa.sparsity=1.5: expected at least 0 and below 1 "
            f"(1 of 4 jobs: methods=larosa methods.larosa.sparsity=1.5){RAN_NOTHING}",
        ),
        (
            "evaluate",
            ["quality.context_bytes=16,512", "quality.window_bytes=128,1024"],
            "quality.context_bytes=512: expected at least 0 and less than quality.window_bytes "
            f"(1 of 4 jobs: quality.context_bytes=512 quality.window_bytes=128){RAN_NOTHING}",
        ),
        (
            "evaluate",
            ["seed=0,-1", "methods=larosa,lorasa"],
            "methods=lorasa: no such option, did you mean larosa?; there are: adaptivocab, all, "
            "baseline, fused, larosa, vattention (2 of 4 jobs: methods=lorasa); seed=-1: expected "
            "at least 0 and below 4294967296 (1 of 4 jobs: seed=-1 methods=larosa)"
            f"{RAN_NOTHING}",
        ),
        (
            "evaluate",
            ["methods=larosa", "sparsity=1.5", "seed=0,1"],
            f"larosa.sparsity=1.5: expected at least 0 and below 1{RAN_NOTHING}",
        ),
        ("evaluate", ["seed=-1"], "seed=-1: expected at least 0 and below 4294967296"),
        ("evaluate", ["experiment=ablation", "model=hub", "model.name=/no"], "model.name=/no: the"),
        (
            "evaluate",
            ["methods=baseline,larosa", "size=20"],
            "methods.adaptivocab: adaptivocab is in no stack of the sweep, write methods=adaptivo",
        ),
        (
            "evaluate",
            ["seed=0,1", "hydra.sweep.subdir=same"],
            "hydra.sweep.subdir=same: same would be the folder of two jobs: leave it out",
        ),
        *(
            ("evaluate", [seeds, f"hydra.sweep.subdir={name}"], f"{refused}: expected a folder of")
            for seeds, name, refused in (
                ("seed=0", ".", "hydra.sweep.subdir=."),
                ("seed=0", "report", "hydra.sweep.subdir=report"),
                ("seed=0,1", "report/${seed}", "hydra.sweep.subdir=report/0"),
                ("seed=0,1", "../job${seed}", "hydra.sweep.subdir=../job0"),
                ("seed=0,1", "a/../../${seed}", "hydra.sweep.subdir=../0"),
                ("seed=0,1", "/tmp/job${seed}", "hydra.sweep.subdir=/tmp/job0"),
            )
        ),
        (
            "evaluate",
            ["seed=0", "hydra.output_subdir=./report"],
            "hydra.output_subdir=./report: is",
        ),
        ("evaluate", ["seed=0,1", "hydra.sweep.subdir=./a"], "hydra.sweep.subdir=./a: a would be"),
        (
            "evaluate",
            ["experiment=demo,ablation", *TINY],
            "experiment=demo has methods and methods.adaptivocab.mode and methods.larosa.tokens of "
            "its own, which are not read where a sweep is over experiments: start a sweep for "
            "each, or name methods= methods.adaptivocab.mode= methods.larosa.tokens= (1 of 2 jobs: "
            "experiment=demo); experiment=ablation has "
            f"methods of its own, which are not read where a sweep is over experiments: start a "
            f"sweep for each, or name methods= (1 of 2 jobs: experiment=ablation){RAN_NOTHING}",
        ),
        (
            "evaluate",
            ["experiment=ablation,search", "methods=larosa", "sparsity=0.4"],
            "experiment=search has methods.adaptivocab.mode and hydra/sweeper of its own, which",
        ),
        ("evaluate", ["seed=interval(0,9)"], "seed=interval(0,9): is for experiment=search; name"),
        (
            "evaluate",
            ["experiment=search", *TINY],
            "search.max_bpb_increase=0.02: the model has no quality to hold to a budget, as its "
            f"weights are random: write null, or choose another model{RAN_NOTHING}",
        ),
        (
            "evaluate",
            ["experiment=search", "sparsity=0.2,1.5", "methods=larosa,vattention"],
            "larosa.sparsity=1.5: expected at least 0 and below 1 "
            "(1 of 3 jobs: methods=larosa methods.larosa.sparsity=1.5)" + RAN_NOTHING,
        ),
        (
            "evaluate",
            ["experiment=search", "sparsity=interval(0.2,1.5)", "methods=larosa"],
            "larosa.sparsity=1.5: expected at least 0 and below 1 (1 of 2 jobs: methods.larosa.sp",
        ),
        (
            "evaluate",
            ["experiment=search", "methods=larosa", "~metrics.likelihood"],
            "metrics has no trimtab.evaluation.metrics.likelihood.Likelihood: a search needs it",
        ),
        (
            "calibrate",
            ["method=larosa,vattention"],
            "vattention needs no calibration: evaluate it with evaluate.py methods=vattention "
            f"(1 of 2 jobs: method=vattention){RAN_NOTHING}",
        ),
        (
            "calibrate",
            ["methods=larosa,all", "sparsity=0.4,1.5"],
            "larosa.sparsity=1.5: expected at least 0 and below 1 "
            f"(2 of 4 jobs: methods.larosa.sparsity=1.5){RAN_NOTHING}",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_sweep_with_a_job_that_can_never_run_is_refused_before_any_has(
    refusal, tmp_path, name, arguments, expected
):
    before = state(tmp_path)
    line = refusal(name, "-m", *arguments)
    assert line.startswith(f"{name}.py: error: {expected}")
    assert not expected.endswith(RAN_NOTHING) or line.endswith(RAN_NOTHING)
    assert state(tmp_path) == before


def test_the_winners_command_has_all_that_its_figure_depends_on(tmp_path, capsys):
    for number, experiment in enumerate(("search", "mine")):
        job = result("larosa", (1.5, 1.4, 1.6), overrides=[
            "methods=larosa", "++methods.larosa.sparsity=0.4", "methods.adaptivocab.mode=draft",
            "search.max_bpb_increase=null", f"experiment={experiment}",
        ])  # fmt: skip
        tell_winner(written(tmp_path / str(number), [job]), None)
    kept = "python evaluate.py methods=larosa methods.larosa.sparsity=0.4"
    assert capsys.readouterr().out.splitlines() == [kept, f"{kept} experiment=mine"]
    tell_winner(written(tmp_path / "own", [job | {"options": ["--config-dir=a b"]}]), None)
    assert capsys.readouterr().out.startswith("python evaluate.py '--config-dir=a b' methods=")


def test_a_calibration_is_resumed_by_its_own_command(refusal):
    assert "goes on by itself when the same command is typed" in refusal("calibrate", "resume=x")


PLUGINS = {"workers": "hydra_joblib_launcher", "submitit_local": "hydra_submitit_launcher"}


@pytest.mark.parametrize(
    "launcher", [pytest.param("workers", marks=pytest.mark.exhaustive), "submitit_local"]
)
def test_jobs_that_run_beside_each_other(fresh_command, tmp_path, launcher):
    """In a Python of its own: loky's processes outlive a fork that has started them."""
    pytest.importorskip(f"hydra_plugins.{PLUGINS[launcher]}")
    sweep = ["-m", f"hydra/launcher={launcher}", "hydra.sweep.dir=sweep", "seed=0,1"]
    done = fresh_command("evaluate.py", *sweep, "methods=baseline", *JOB)
    assert done.returncode == 0, done.stderr
    assert statuses(tmp_path / "sweep") == {"0": "ok", "1": "ok"}
    assert (tmp_path / "sweep" / "report" / "report.md").exists()
    if launcher != "workers":
        return  # its jobs write to files
    told = [line for line in done.stderr.splitlines() if line.startswith("Job ")]
    both = [f"Job {n} (0 to 1): {what}" for n in (0, 1) for what in ("baseline", "finished after")]
    assert all(sum(line.startswith(one) for line in told) == 1 for one in both)
    assert len(told) == 4

    first = state(tmp_path / "sweep" / "0")
    (tmp_path / "sweep" / "1" / "result.json").unlink()
    resumed = fresh_command("evaluate.py", "resume=sweep")
    assert resumed.returncode == 0, resumed.stderr
    assert statuses(tmp_path / "sweep") == {"0": "ok", "1": "ok"}
    assert state(tmp_path / "sweep" / "0") == first


def test_a_search_goes_on_and_ends_in_the_command_of_the_best(command, tmp_path):
    pytest.importorskip("optuna")
    search = [
        "-m", "experiment=search", "methods=vattention,larosa", "sparsity=0.4", *METHOD, *JOB,
        "hydra.sweeper.n_trials=9", "hydra.sweep.dir=sweep", "search.max_bpb_increase=null",
    ]  # fmt: skip
    failed = command("evaluate.py", *search, "on_missing=error")
    assert failed.returncode == 1, failed.stderr
    assert "evaluate.py: error: no artifact of larosa" in failed.stderr
    assert "Job 1 (0 to 1): " in failed.stderr  # all that there are
    assert sorted(statuses(tmp_path / "sweep").values()) == ["error", "ok"]
    (path,) = tmp_path.glob("sweep/*/error.json")
    assert "python evaluate.py methods=vattention" in failed.stdout.splitlines()[-1]

    asked = json.loads(path.read_text())["overrides"]
    made = command("calibrate.py", *TINY, "corpus.max_documents=40", *SMALL, "sparsity=0.4")
    assert made.returncode == 0, made.stderr
    resumed = command("evaluate.py", "resume=sweep")
    assert resumed.returncode == 0, resumed.stderr
    assert statuses(tmp_path / "sweep") == {"0": "ok", "1": "ok"}
    assert json.loads(path.with_name("result.json").read_text())["overrides"] == asked
    results = [json.loads(one.read_text()) for one in tmp_path.glob("sweep/*/result.json")]
    best = max(results, key=lambda one: one["speed"]["speedup"]["estimate"])
    (line,) = [one for one in resumed.stdout.splitlines() if one.startswith("python ")]
    typed = line.split()[2:]
    assert typed[0] == f"methods={best['methods'][0]}"
    assert not any(one.startswith(("experiment=", "search.", "+")) for one in typed)
    assert any("larosa" in one for one in typed) == (best["methods"] == ["larosa"])
    assert "Nothing to run" in command("evaluate.py", "resume=sweep").stderr


def test_a_trial_has_values_for_what_its_stack_reads():
    optuna = pytest.importorskip("optuna")
    sweep = parsed([
        "~metrics.kv", "methods=vattention,[larosa,vattention]", "model.seed=3",
        "++methods.larosa.sparsity=range(0.125,0.5,0.125)", "seed=int(interval(1,9))",
        "methods.larosa.tokens=512,1024", "quality.windows=tag(log,int(interval(2,64)))",
    ])  # fmt: skip
    overrides = {one.key_or_group: one for one in sweep}
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    stacks = set()
    for number in range(20):
        trial = study.ask()
        trial.set_user_attr("job", number)
        suggest(trial, overrides)
        folder, *job = arguments_of(trial, overrides)
        assert (folder, job[0]) == (f"hydra.sweep.subdir={number}", "~metrics.kv")
        values = dict(one.split("=") for one in job[1:])
        stacks.add(values["methods"])
        assert values["model.seed"] == "3"
        assert int(values["seed"]) in range(1, 10)
        assert int(values["quality.windows"]) in range(2, 65)
        larosa = [values.get("++methods.larosa.sparsity"), values.get("methods.larosa.tokens")]
        if values["methods"] == "vattention":
            assert larosa == [None, None]
        else:
            assert larosa[0] in ("0.125", "0.25", "0.375")
            assert larosa[1] in ("512", "1024")
    assert stacks == {"vattention", "[larosa,vattention]"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["methods=vattention,[larosa,vattention]"], 2),
        (["methods=vattention,larosa,all", "methods.larosa.sparsity=range(1,4)"], 1 + 3 + 3),
        (["methods=larosa", "++methods.larosa.sparsity=1,2", "seed=1,2,3"], 6),
        (["seed=1,2", "methods.larosa.sparsity=1,2"], 2),
        (["methods=vattention,larosa", "methods.larosa.sparsity=interval(0,1)"], None),
    ],
)
def test_a_space_has_as_many_configurations_as_its_stacks_read(given, expected):
    assert size({one.key_or_group: one for one in parsed(given)}) == expected


def measured(speedup: float, rise: float) -> dict[str, Any]:
    """Return what a result holds of a stack that needs that much more bits per byte."""
    bits = {"baseline": 2.0, "difference": {"estimate": 0.0, "high": 2.0 * rise}}
    return {"speed": {"speedup": {"estimate": speedup}}, "quality": {"bits_per_byte": bits}}


def test_a_search_prefers_whatever_is_within_the_budget():
    ranked = [(1.2, 0.01), (0.8, 0.02), (3.0, 0.03), (1.5, 0.1)]  # the best first
    values = [objective(measured(*one), 0.02) for one in ranked]
    assert values == sorted(values, reverse=True)
    assert values[:2] == [1.2, 0.8]
    assert max(values[2:]) < 0
    assert objective(measured(1.5, 0.1), None) == 1.5
    with pytest.raises(ConfigError, match=r"search.max_bpb_increase=0.02: quality was not"):
        objective({**measured(1.5, 0.1), "quality": None}, 0.02)
