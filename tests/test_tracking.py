"""W&B runs as they are written: opened, refused, failed, and the runs of a whole sweep."""

import errno
import os
import shlex
from contextlib import nullcontext
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb
from omegaconf import OmegaConf

from tests.conftest import SMALL, TINY, tiny
from tests.test_artifact import artifact
from tests.test_cli_evaluate import FAST, METHOD
from tests.wandb_runs import runs_in
from trimtab import tracking
from trimtab.calibration import calibrate
from trimtab.commands import summary
from trimtab.config import TrackingConfig, TrackingMode
from trimtab.errors import ConfigError, TrimtabError
from trimtab.larosa import LaRoSA
from trimtab.tracking import Job
from trimtab.tracking.job import RECORD

JOB = Job("evaluate", "a label")
PUBLISH = "from trimtab.report.__main__ import main; main()"
UNPUBLISHED = (
    "--wandb us/ours: not logged in: run `wandb login` first"
    if find_spec("wandb_workspaces")
    else "a W&B Report needs the package wandb-workspaces: pip install 'trimtab[reports]'"
)


def configured(folder: Path, mode: TrackingMode = TrackingMode.offline) -> TrackingConfig:
    return TrackingConfig(mode=mode, project="tests", entity=None, folder=str(folder))


def begin(config: TrackingConfig, job: Job = JOB, *tags: str) -> None:
    with tracking.run(config, job) as log:
        log.begin(*tags)


def test_the_runs_of_a_sweep(command, zygote, tmp_path):
    made = command("calibrate.py", *TINY, *SMALL, "sparsity=0.4")
    done = command(
        "evaluate.py", "-m", *TINY, "methods=larosa", *METHOD, "sparsity=0.4,0.6", *FAST,
        "on_missing=error",
    )  # fmt: skip
    assert (made.returncode, done.returncode) == (0, 1), made.stderr + done.stderr
    (sweep,) = tmp_path.glob("multirun/*/*")
    calibration, measured, failed, summary = runs_in(tmp_path / "outputs")

    group = "/".join(sweep.parts[-2:])
    told = [
        (run.opened["job_type"], run.opened.get("run_group"), run.page["name"], run.page["tags"])
        for run in (calibration, measured, failed, summary)
    ]
    tags = ["tiny-llama", "larosa"]
    assert told == [
        ("calibrate", None, "larosa tokens=512 window=64 sparsity=0.4", tags),
        ("evaluate", group, "larosa tokens=512 window=64 sparsity=0.4", tags),
        ("evaluate", group, "larosa tokens=512 window=64 sparsity=0.6", tags),
        ("summary", group, f"summary of {group}", []),
    ]

    config, digest = measured.config, Path(made.stdout.strip()).name
    chosen = {"model": "random", "corpus": "python-docs", "methods": "larosa"}
    assert {name: config[name] for name in chosen} == chosen
    assert config["methods.larosa.sparsity"] == 0.4
    assert config["artifact_digests.larosa"] == digest
    assert not [name for name, item in config.items() if isinstance(item, dict)]

    figures = measured.summary
    assert (figures["status"], measured.page["exit_code"]) == ("ok", 0)
    assert figures["speed.speedup.low"] <= figures["speed.speedup.estimate"]
    assert figures["sparsity.achieved"] == pytest.approx(0.45, abs=0.05)
    assert not [name for name, item in figures.items() if isinstance(item, list)]
    assert not [name for name in figures if name.startswith(("samples.", "reasons."))]
    (history,) = measured.of("history")
    assert history["item"]["speed.speedup.estimate"] == figures["speed.speedup.estimate"]
    timings = measured.table("samples/timings")
    assert {row["model"] for row in timings} == {"baseline", "candidate", "control"}
    assert figures["plots/all_methods_speedup_comparison"]["_type"] == "image-file"

    (logged,), (used,) = calibration.calibrations(), measured.calibrations()
    assert logged["name"] == used["name"] == f"larosa-{digest}"
    assert logged["digest"] == used["digest"]  # one version, whichever is uploaded first
    assert (logged.get("use_after_commit"), used["use_after_commit"]) == (None, True)

    assert failed.page["exit_code"] == 1
    problem = {name: failed.summary[name] for name in ("status", "type")}
    assert problem == {"status": "error", "type": "MissingArtifactError"}
    assert failed.summary["message"].startswith("no artifact of larosa for tiny-llama")
    assert not [name for name in failed.summary if "." in name]

    assert [row["status"] for row in summary.table("jobs")] == ["ok", "error"]
    assert summary.table("jobs")[0]["speed.speedup.low"] == figures["speed.speedup.low"]
    assert summary.table("jobs")[1]["message"] == failed.summary["message"]
    assert (summary.summary["measured_jobs"], summary.summary["failed_jobs"]) == (1, 1)
    assert "plots/all_methods_speedup_comparison" in summary.summary
    (report,) = (one for one in summary.of("artifact") if one["type"] == "report")
    files = {entry["path"] for entry in report["manifest"]["contents"]}
    assert {"report.md", "results.csv"} <= files

    (sweep / "report" / "report.html").write_text("<p>found</p>")
    tracking.summarise(sweep)
    *_, again = runs_in(tmp_path / "outputs")
    assert again.page["run_id"] == summary.page["run_id"]
    assert again.table("jobs") == summary.table("jobs")
    assert again.summary["report/report"]["_type"] == "html-file"

    nobody = {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc"), "WANDB_API_KEY": ""}
    given = [str(sweep), "--wandb", "us/ours"]
    published = zygote.run("-c", PUBLISH, *given, cwd=tmp_path, **nobody)
    assert (published.returncode, published.stdout) == (1, f"{sweep}/report/report.md\n")
    assert published.stderr == f"trimtab.report: error: {UNPUBLISHED}\n"


@pytest.mark.exhaustive
def test_the_summary_of_a_resumed_sweep_goes_where_the_resumed_runs_go(command, tmp_path):
    sweep = tmp_path / "sweep"
    given = ["-m", "methods=baseline", *TINY, *FAST, "seed=0,1", "hydra.sweep.dir=sweep"]
    done = command("evaluate.py", *given, "tracking.project=first")
    assert done.returncode == 0, done.stderr

    def resumed(*tracking: str) -> list[tuple[str, str]]:
        (sweep / "1" / "result.json").unlink()
        again = command("evaluate.py", "resume=sweep", *tracking)
        assert again.returncode == 0, again.stderr
        runs = runs_in(tmp_path / "outputs")
        return [(run.opened["job_type"], run.opened["project"]) for run in runs]

    first = [("evaluate", "first"), ("evaluate", "first"), ("summary", "first")]
    assert resumed("tracking.mode=disabled") == first
    second = [("evaluate", "second"), ("summary", "second")]
    assert resumed("tracking.project=second") == first + second


def test_settings_have_the_names_that_are_typed():
    composed = OmegaConf.create(
        {"seed": 1, "methods": {"larosa": {"_target_": "x.Y", "sparsity": "${half}"}}, "half": 0.5}
    )
    settings = tracking.configuration(composed, {"model": "hub"})
    assert settings == {
        "seed": 1, "half": 0.5, "methods": "larosa", "methods.larosa.sparsity": 0.5, "model": "hub"
    }  # fmt: skip


def test_a_calibration_logs_its_figures(tmp_path, corpus, capfd):
    method = LaRoSA(tokens=512, window=64)
    artifact, folder = calibrate(tiny(), method, corpus, tmp_path / "artifacts")
    artifact.statistics["ngram_tokens"] = [[1, 2], [3, 4]]
    with tracking.run(configured(tmp_path), Job("calibrate", "larosa")) as log:
        log.begin("tiny-llama")
        log.artifact(artifact, folder)
    (run,) = runs_in(tmp_path)
    assert run.config == {"artifact_digests.larosa": artifact.key.digest}
    figures = run.summary
    assert figures["larosa.statistics.tokens"] == 512
    assert figures["larosa.run.wall_seconds"] == artifact.run["wall_seconds"]
    assert not [name for name, item in figures.items() if isinstance(item, list | dict)]
    (logged,) = run.calibrations()
    files = {entry["local_path"] for entry in logged["manifest"]["contents"]}
    assert files == {str(folder / name) for name in ("artifact.json", "tensors.safetensors")}
    assert "Adding directory" not in capfd.readouterr().err


def test_two_jobs_are_two_runs_that_do_not_mix(tmp_path):
    for index in range(2):
        begin(configured(tmp_path), Job("evaluate", f"job {index}", {"seed": index}))
    runs = runs_in(tmp_path)
    assert [run.page["name"] for run in runs] == ["job 0", "job 1"]
    assert [run.config for run in runs] == [{"seed": 0}, {"seed": 1}]


def test_a_job_that_runs_again_in_its_folder_replaces_its_run(monkeypatch, tmp_path):
    job = Job("evaluate", "a label", group="a sweep", folder=tmp_path / "sweep" / "0")
    with pytest.raises(TrimtabError), tracking.run(configured(tmp_path), job) as log:
        log.begin()
        raise TrimtabError("no memory left")
    begin(configured(tmp_path), job)
    begin(configured(tmp_path), replace(job, folder=tmp_path / "sweep" / "1"))
    failed, again, other = runs_in(tmp_path)
    assert failed.summary["message"] == "no memory left"
    assert (again.page["run_id"], again.page["exit_code"]) == (failed.page["run_id"], 0)
    assert "message" not in again.summary
    assert not again.opened.get("resumed")  # it begins anew: nothing of the failure stays
    assert other.page["run_id"] != again.page["run_id"]
    monkeypatch.setenv("WANDB_RUN_ID", "mine")
    begin(configured(tmp_path), replace(job, group=None))
    assert runs_in(tmp_path)[-1].page["run_id"] == "mine"


def test_what_variables_of_wandb_say_comes_first(monkeypatch, tmp_path):
    given = {"NAME": "mine", "RUN_GROUP": "ours", "TAGS": "larosa, ,,quiet,"}
    for name, value in given.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    job = Job("evaluate", "a label", tags=("larosa",), group="a sweep", folder=tmp_path)
    begin(configured(tmp_path), job, "m" * 100)
    (run,) = runs_in(tmp_path)
    assert (run.page["name"], run.opened["run_group"]) == ("mine", "ours")
    assert run.page["tags"] == ["m" * 64, "larosa", "quiet"]


def test_the_type_of_a_job_is_not_taken_from_a_variable(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("WANDB_JOB_TYPE", "mine")
    begin(configured(tmp_path))
    (run,) = runs_in(tmp_path)
    assert run.opened["job_type"] == "evaluate"
    assert "WANDB_JOB_TYPE=mine is not read: Reports find a job's run by" in capsys.readouterr().err


def test_one_id_for_the_runs_of_a_sweep_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_RUN_ID", "r1")
    with pytest.raises(TrimtabError, match="^WANDB_RUN_ID=r1: names one run, .*: leave out -m"):
        begin(configured(tmp_path), Job("evaluate", "a label", group="a sweep"))
    assert list(tmp_path.iterdir()) == []


def full_disk(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("step", ["log_artifact", "finish"])
@pytest.mark.parametrize("variable", ["WANDB_DIR", ""])
def test_a_disk_that_fills_costs_a_job_its_run_alone(monkeypatch, tmp_path, capsys, variable, step):
    written = getattr(wandb.Run, step)
    made = artifact()
    made.save(tmp_path / "made")
    monkeypatch.setattr(wandb.Run, step, lambda *a, **k: full_disk(written(*a, **k)))
    if variable:
        monkeypatch.setenv(variable, str(tmp_path))
    with tracking.run(configured(tmp_path), JOB) as log:
        log.begin()
        log.artifact(made, tmp_path / "made")
    place = f"{variable or 'tracking.folder'}={tmp_path}"
    told = f"Warning: the W&B run is incomplete: {place}: No space left on device; make room there"
    assert capsys.readouterr().err.startswith(told)


def test_a_disk_that_is_full_when_a_run_ends_is_told(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=4096))
    begin(configured(tmp_path))
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"Warning: the W&B run is incomplete: tracking.folder={tmp_path}: No ")


def test_what_keeps_a_run_from_being_written_leaves_the_error_of_its_job(
    monkeypatch, tmp_path, capsys
):
    finish = wandb.Run.finish

    def fails(run: wandb.Run, **how: Any) -> None:
        finish(run, **how)
        raise wandb.Error("the service is gone\nand more")

    monkeypatch.setattr(wandb.Run, "finish", fails)
    with (
        pytest.raises(TrimtabError, match="^no memory left$"),
        tracking.run(configured(tmp_path), JOB) as log,
    ):
        log.begin()
        raise TrimtabError("no memory left")
    told = "Warning: the W&B run is incomplete: Error: the service is gone\n"
    assert capsys.readouterr().err == told


def test_a_run_that_cannot_be_opened_for_its_disk_is_refused_by_name(monkeypatch, tmp_path):
    monkeypatch.setattr("wandb.init", full_disk)
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    expected = f"^WANDB_DIR={tmp_path}: No space left on device; make room there, or name another"
    with pytest.raises(TrimtabError, match=expected):
        begin(configured(tmp_path))


@pytest.mark.parametrize("own", [None, TrimtabError("the job's own")])
def test_a_summary_that_cannot_be_written_leaves_what_the_sweep_ends_in(monkeypatch, capsys, own):
    monkeypatch.setattr(summary, "_begun", [(Path("sweep"), None)])
    monkeypatch.setattr(tracking, "summarise", full_disk)
    with (
        pytest.raises(TrimtabError, match="^the job's own$") if own else nullcontext(),
        summary.summarised(),
    ):
        if own:
            raise own
    assert capsys.readouterr().err.startswith("Warning: the sweep has no W&B summary: ")


def test_an_interrupted_job_is_closed_as_failed(tmp_path):
    with pytest.raises(KeyboardInterrupt), tracking.run(configured(tmp_path), JOB) as log:
        log.begin()
        raise KeyboardInterrupt
    (run,) = runs_in(tmp_path)
    assert (run.page["exit_code"], run.summary["type"]) == (1, "KeyboardInterrupt")


def test_a_job_that_is_refused_before_it_begins_has_no_run(tmp_path):
    job = Job("evaluate", "a label", folder=tmp_path)
    with pytest.raises(TrimtabError), tracking.run(configured(tmp_path), job):
        raise TrimtabError("the model is too large")
    assert list(tmp_path.iterdir()) == []


def test_disabled_tracking_leaves_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_RUN_ID", "r1")
    folder = tmp_path / "0"
    config = configured(tmp_path / "outputs", TrackingMode.disabled)
    begin(config, Job("evaluate", "a label", group="a sweep", folder=folder))
    tracking.summarise(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"WANDB_DISABLED": "true", "WANDB_MODE": ""}, "No W&B run is kept: WANDB_DISABLED=true"),
        ({"WANDB_MODE": "disabled"}, "No W&B run is kept: WANDB_MODE=disabled"),
        ({"WANDB_MODE": "offline"}, ""),
    ],
)
def test_a_command_says_which_variable_disables_tracking(command, tmp_path, variables, said):
    given = [] if said else ["tracking.mode=disabled"]
    done = command("calibrate.py", *TINY, *SMALL, *given, **variables)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.rglob("wandb*"))
    assert "No W&B run is kept" in done.stderr or not said
    assert said in done.stderr.splitlines() or "W&B" not in done.stderr


def test_a_run_online_without_a_login_is_refused_with_the_way_out(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    expected = r"^tracking\.mode=online: .*run `wandb login`, or use tracking\.mode=offline$"
    with pytest.raises(ConfigError, match=expected):
        begin(configured(tmp_path, TrackingMode.online), Job("evaluate", "x", folder=tmp_path))
    assert not (tmp_path / RECORD).exists()


def test_a_run_id_that_cannot_be_is_refused_by_name(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_RUN_ID", "a/b")
    with pytest.raises(ConfigError, match="^WANDB_RUN_ID=a/b: Run ID cannot contain"):
        begin(TrackingConfig(folder=str(tmp_path)))


def test_a_project_that_cannot_be_is_refused_by_name(tmp_path):
    config = TrackingConfig(project="a/b", folder=str(tmp_path))
    with pytest.raises(ConfigError, match=r"^tracking\.project=a/b: Invalid project name"):
        begin(config)


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("wandb/settings", b"[default]\nfoo = 5%\n", "foo: '%' must be followed by .* write %%"),
        ("users/settings", b"[default]\nentity = 100%x\n", "entity: '%' must be followed by"),
        ("config-defaults.yaml", b"seed: 3", "expected lines such as `seed: {value: 3}`"),
        ("config-defaults.yaml", b"- a", "expected lines such as"),
        ("config-defaults.yaml", b"a: [", "while parsing a flow node"),
        ("config-defaults.yaml", b"\xff", ".*can't decode byte 0xff"),
        ("config-defaults.yaml", b"on: {value: 1}", "expected lines such as"),
        ("config-defaults.yaml", b"wandb_version: 2", "expected .* wandb_version: 1 if"),
        ("wandb/settings", b"[default]\nproject = caf\xe9", ".*can't decode byte 0xe9"),
    ],
)
def test_a_file_that_weights_and_biases_would_fail_to_read_is_named(
    monkeypatch, tmp_path, file, content, expected
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "users"))
    tracking.check(config := configured(tmp_path))
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(TrimtabError, match=rf"{file}\b.*: {expected}"):
        tracking.check(config)
    tracking.check(replace(config, mode=TrackingMode.disabled))


@pytest.mark.parametrize(
    ("variable", "field"),
    [("WANDB_CONFIG_PATHS", "config_paths"), ("WANDB_CONSOLE", "console")],
)
def test_a_variable_that_weights_and_biases_refuses_is_told_before_there_is_work(
    monkeypatch, tmp_path, variable, field
):
    monkeypatch.setenv(variable, "more.yaml")
    with pytest.raises(TrimtabError, match=rf"^W&B refuses one of its variables, .*{field}"):
        tracking.check(configured(tmp_path))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # W&B leaves it open
def test_files_that_weights_and_biases_reads_by_itself_count(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config-defaults.yaml").write_text("wandb_version: 1\nours: {value: 3}\n")
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "settings").write_text("[default]\nrun_notes = 5%%\n")
    begin(configured(tmp_path))
    (run,) = runs_in(tmp_path)
    assert run.config["ours"] == 3


@pytest.mark.parametrize("folder", ["my runs", "-runs"])
def test_the_command_that_uploads_a_run_can_be_copied(monkeypatch, capsys, tmp_path, folder):
    monkeypatch.chdir(tmp_path)
    begin(TrackingConfig(folder=folder))
    line = capsys.readouterr().err.partition("upload it with: ")[2]
    *command, directory = shlex.split(line)
    assert command == ["wandb", "sync"]
    assert not directory.startswith("-")
    assert Path(directory).parent.parent == Path(folder)


def test_a_temporary_folder_that_fills_while_plots_are_drawn_is_named(
    monkeypatch, tmp_path, capsys
):
    def drawn(folder: Path, pictures: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(pictures / "speed.png"))

    monkeypatch.setattr("trimtab.tracking.log.draw", drawn)
    with tracking.run(configured(tmp_path), JOB) as log:
        log.begin()
        log.result({"artifacts": {}, "model": {"name": "tiny"}}, tmp_path, "artifacts")
    said = capsys.readouterr().err
    assert "the W&B run is incomplete: " in said
    assert "speed.png: No space left on device; set TMPDIR to a folder with room" in said
    assert "tracking.folder" not in said


@pytest.mark.parametrize("variable", ["WANDB_DATA_DIR", "WANDB_CACHE_DIR"])
def test_a_folder_of_weights_and_biases_own_is_refused_before_there_is_work_to_lose(
    monkeypatch, tmp_path, variable
):
    monkeypatch.setenv(variable, "/dev/null")
    with pytest.raises(ConfigError, match=f"^{variable}=/dev/null: cannot be written"):
        tracking.check(configured(tmp_path))


@pytest.mark.parametrize("given", [None, ""])
def test_weights_and_biases_is_told_the_home_folder_for_the_time_of_a_run(
    monkeypatch, tmp_path, given
):
    monkeypatch.delenv("HOME")
    home = os.path.expanduser("~")
    if given is not None:
        monkeypatch.setenv("HOME", given)
    tracking.check(config := configured(tmp_path))
    with tracking.run(config, JOB):
        assert os.environ["HOME"] == home
    assert os.environ.get("HOME") == given
    monkeypatch.setattr(import_module("trimtab.tracking.run"), "expanduser", lambda path: path)
    for enter in (tracking.check, begin):
        with pytest.raises(TrimtabError, match=r"^HOME is not set, .* tracking\.mode=disabled$"):
            enter(config)
        assert os.environ.get("HOME") == given


def test_a_variable_that_weights_and_biases_refuses_is_one_line(monkeypatch, tmp_path):
    def init(**settings: Any) -> None:
        raise ValueError("1 validation error for Settings\nbase_url\n  Input should be a valid URL")

    monkeypatch.setattr("wandb.init", init)
    expected = r"^W&B refuses one of its variables, .*base_url Input"
    with pytest.raises(TrimtabError, match=expected):
        begin(configured(tmp_path))


@pytest.mark.parametrize("below", ["", "deeper/still"])
def test_a_folder_that_cannot_be_written_is_refused(tmp_path, below):
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / below
    expected = rf"^tracking\.folder={folder}: cannot be written: Not a directory; name a folder"
    for enter in (tracking.check, begin):
        with pytest.raises(ConfigError, match=expected):
            enter(configured(folder))
    tracking.check(configured(folder, TrackingMode.disabled))


def test_checking_a_folder_leaves_nothing(tmp_path):
    tracking.check(configured(tmp_path / "new" / "place"))
    assert list(tmp_path.iterdir()) == []
