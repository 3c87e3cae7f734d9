"""Offline runs, read back with wandb's own reader."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from tests.conftest import tiny
from trimtab import tracking
from trimtab.calibration import calibrate
from trimtab.config import TrackingConfig, TrackingMode
from trimtab.errors import ConfigError, TrimtabError
from trimtab.larosa import LaRoSA

RESULT = {
    "status": "ok",
    "artifacts": {"larosa": "0123"},
    "quality": {"bits_per_byte": {"baseline": 1.0, "candidate": 1.25}},
    "samples": {"timings": [{"model": "baseline", "total": 1.5}], "windows": []},
}


def inspect(run: Path, *options: str) -> str:
    """Return what wandb's reader prints of an offline run."""
    program = Path(sys.executable).with_name("wandb")
    command = [str(program), "leet", "inspect", "--json", *options, str(run)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in inspect(run).splitlines() if line.strip()]


def summary(run: Path) -> dict[str, Any]:
    content = json.loads(inspect(run, "--summary"))
    assert isinstance(content, dict)
    return content


def configured(folder: Path, mode: TrackingMode = TrackingMode.offline) -> TrackingConfig:
    return TrackingConfig(mode=mode, project="tests", entity=None, folder=str(folder))


def offline_runs(folder: Path) -> list[Path]:
    return sorted(folder.glob("wandb/offline-run-*"))


def test_two_jobs_are_two_runs_that_do_not_mix(tmp_path):
    report = tmp_path / "report"
    report.mkdir()
    for index in range(2):
        composed = OmegaConf.create({"seed": index, "twice": "${seed}"})
        with tracking.run(configured(tmp_path), "evaluate", composed, group="a sweep") as log:
            figures = {"quality": {"bits_per_byte": {"candidate": 2.5 + index}}}
            log.result({**RESULT, **figures}, report / "report.md")
    # Two runs of one second have names in no particular order.
    runs = [(summary(run), records(run)) for run in offline_runs(tmp_path)]
    runs.sort(key=lambda run: run[0]["config"]["seed"])
    assert len(runs) == 2
    for index, (found, lines) in enumerate(runs):
        assert found["state"] == "finished"
        assert found["config"] == {
            "seed": index, "twice": index, "artifact_digests": {"larosa": "0123"}
        }  # fmt: skip
        assert found["summary"]["quality.bits_per_byte.candidate"] == 2.5 + index
        assert found["summary"]["samples/timings"]["nrows"] == 1
        (opened,) = [line["run"] for line in lines if line["type"] == "run"]
        assert (opened["run_group"], opened["job_type"]) == ("a sweep", "evaluate")


def test_a_calibration_logs_its_artifact(tmp_path, corpus, capfd):
    method = LaRoSA(tokens=512, window=64)
    artifact, folder = calibrate(tiny(), method, corpus, tmp_path / "artifacts")
    artifact.statistics["ngram_tokens"] = [[1, 2], [3, 4]]
    with tracking.run(configured(tmp_path), "calibrate", OmegaConf.create({}), None) as log:
        log.artifact(artifact, folder)
    (run,) = offline_runs(tmp_path)
    assert summary(run)["config"]["artifact_digests"] == {"larosa": artifact.key.digest}
    found = summary(run)["summary"]
    assert (found["tokens"], found["wall_seconds"]) == (512, artifact.run["wall_seconds"])
    assert not {"plan", "ngram_tokens"} & found.keys()
    names = [line["artifact"]["name"] for line in records(run) if line["type"] == "artifact"]
    assert names == [f"larosa-{artifact.key.digest}"]
    assert "Adding directory" not in capfd.readouterr().err


def test_a_failed_job_is_closed_as_failed(tmp_path):
    with (
        pytest.raises(RuntimeError),
        tracking.run(configured(tmp_path), "evaluate", OmegaConf.create({}), None),
    ):
        raise RuntimeError
    (run,) = offline_runs(tmp_path)
    assert summary(run)["exit_code"] == 1


def test_disabled_tracking_writes_nothing(tmp_path):
    config = configured(tmp_path, TrackingMode.disabled)
    with tracking.run(config, "evaluate", OmegaConf.create({"seed": 0}), None) as log:
        log.result(RESULT, tmp_path / "report.md")
    assert offline_runs(tmp_path) == []


def test_a_run_online_without_a_login_is_refused_with_the_way_out(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    expected = r"^tracking\.mode=online: .*run `wandb login`, or use tracking\.mode=offline$"
    config = configured(tmp_path, TrackingMode.online)
    with (
        pytest.raises(ConfigError, match=expected),
        tracking.run(config, "evaluate", OmegaConf.create({}), None),
    ):
        pass


def test_a_project_that_cannot_be_is_refused_by_name(tmp_path):
    config = TrackingConfig(project="a/b", folder=str(tmp_path))
    with (
        pytest.raises(ConfigError, match=r"^tracking\.project=a/b: Invalid project name"),
        tracking.run(config, "evaluate", OmegaConf.create({}), None),
    ):
        pass


def test_a_folder_of_weights_and_biases_own_is_refused_before_there_is_work_to_lose(
    monkeypatch, tmp_path
):
    monkeypatch.setenv("WANDB_DATA_DIR", "/dev/null")
    with pytest.raises(ConfigError, match="^WANDB_DATA_DIR=/dev/null: cannot be written"):
        tracking.check(configured(tmp_path))


def test_a_variable_that_weights_and_biases_refuses_is_one_line(monkeypatch, tmp_path):
    def init(**settings: Any) -> None:
        raise ValueError("1 validation error for Settings\nbase_url\n  Input should be a valid URL")

    monkeypatch.setattr("wandb.init", init)
    with (
        pytest.raises(TrimtabError, match=r"^W&B refuses one of its variables, .*base_url Input"),
        tracking.run(configured(tmp_path), "evaluate", OmegaConf.create({}), None),
    ):
        pass


@pytest.mark.parametrize("below", ["", "deeper/still"])
def test_a_folder_that_cannot_be_written_is_refused(tmp_path, below):
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / below
    expected = rf"^tracking\.folder={folder}: cannot be written: Not a directory; name a folder"
    for enter in (tracking.check, lambda config: tracking.run(config, "", None, None).__enter__()):
        with pytest.raises(ConfigError, match=expected):
            enter(configured(folder))
    tracking.check(configured(folder, TrackingMode.disabled))


def test_checking_a_folder_leaves_nothing(tmp_path):
    tracking.check(configured(tmp_path / "new" / "place"))
    assert list(tmp_path.iterdir()) == []
