"""`calibrate.py` as a user runs it."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT, SMALL, TINY, variables
from trimtab.artifact import Artifact

LONGER = ["tokens=2048", "window=64"]


def artifact_of(stdout: str) -> Artifact:
    return Artifact.load(Path(stdout.splitlines()[-1]))


def test_an_artifact_is_made_once_and_found_again(command, tmp_path):
    first = command("calibrate.py", *TINY, *SMALL, "sparsity=0.3")
    assert first.returncode == 0, first.stderr
    folder = tmp_path / first.stdout.splitlines()[-1]
    artifact = Artifact.load(folder)
    assert artifact.key.config["sparsity"] == 0.3
    assert folder.relative_to(tmp_path).parts[:3] == ("artifacts", "tiny-llama", "larosa")
    assert folder.name == artifact.key.digest
    assert len(first.stdout.splitlines()) == 1
    stamp = (folder / "artifact.json").stat().st_mtime_ns

    again = command("calibrate.py", *TINY, *SMALL, "sparsity=0.3")
    assert (again.stdout, again.returncode) == (first.stdout, 0)
    assert (folder / "artifact.json").stat().st_mtime_ns == stamp

    forced = command("calibrate.py", *TINY, *SMALL, "sparsity=0.3", "force=true")
    assert (forced.stdout, forced.returncode) == (first.stdout, 0)
    assert (folder / "artifact.json").stat().st_mtime_ns != stamp
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_what_calibration_chooses_from_is_said_a_line_a_candidate(command, tmp_path):
    made = command("calibrate.py", *TINY, *SMALL, "selection=auto", "tracking.mode=disabled")
    assert made.returncode == 0, made.stderr
    artifact = Artifact.load(tmp_path / made.stdout.strip())
    rows = artifact.statistics["candidates"]
    assert [row["selection"] for row in rows] == ["threshold", "topk"]
    lines = made.stderr.splitlines()
    for row in rows:
        begin = f"selection={row['selection']} allocation=steepest transforms=auto: "
        (line,) = (one for one in lines if one.startswith(begin))
        assert f"{row['excess']['estimate']:+.4f} [" in line
        assert f"{row['bytes_fraction']:.3f} of the bytes" in line
    (chosen,) = (row["selection"] for row in rows if row["chosen"])
    assert f"Chosen: selection={chosen} allocation=steepest transforms=auto" in lines
    assert artifact.parameters["chosen"]["selection"] == chosen
    assert artifact.key.config["selection"] == "auto"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["sparsity=1.4"], "larosa.sparsity=1.4: expected at least 0 and below 1"),
        (["method=lorasa"], "method=lorasa: no such option, did you mean larosa?"),
        (["sparcity=0.4"], "unknown setting method.sparcity, did you mean sparsity?"),
        (["corpus.glob=/nope/*.txt"], "corpus.glob, it belongs to corpus=files"),
        (["corpus=files", "corpus.glob=/nope/*.txt"], "corpus.glob=/nope/*.txt: no file matches"),
        (["model=hub", "model.name=/nope"], "model.name=/nope: there is no such folder"),
        (["method=3"], "method=3: is no option, leave method out for the default; there are: "),
        (["--config-name", "nope"], "--config-name=nope: no such option; there are: calibrate, ev"),
        (["--config-name", "my/own.yaml"], "is a path: write --config-dir my --config-name own"),
        (["+seeed=3"], "unknown setting seeed, did you mean seed?"),
        (["sparsity"], "sparsity: expected SETTING=VALUE"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_clear_line_and_leaves_nothing(command, tmp_path, arguments, expected):
    done = command("calibrate.py", *arguments)
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("calibrate.py: error: ")
    assert expected in line
    assert list(tmp_path.iterdir()) == []


def test_a_corpus_too_small_for_the_method_leaves_nothing(command, tmp_path):
    done = command("calibrate.py", *TINY, "tokens=10000000", "tracking.mode=disabled")
    assert done.returncode == 1
    assert "windows of 512 tokens are asked for and the text holds" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert list(tmp_path.rglob("*")) == []


def test_the_traceback_is_there_for_who_asks(fresh_command):
    done = fresh_command("calibrate.py", "sparsity=1.4", HYDRA_FULL_ERROR="1")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "ConfigError: larosa.sparsity=1.4" in done.stderr


def test_a_damaged_artifact_is_refused_and_force_replaces_it(command, tmp_path):
    made = command("calibrate.py", *TINY, *SMALL)
    tensors = tmp_path / made.stdout.strip() / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-10])
    refused = command("calibrate.py", *TINY, *SMALL)
    assert refused.returncode == 1
    assert "tensors.safetensors is damaged" in refused.stderr.splitlines()[-1]
    assert command("calibrate.py", *TINY, *SMALL, "force=true").returncode == 0
    assert artifact_of(str(tmp_path / made.stdout.strip()))


def test_a_calibration_killed_again_and_again_ends_in_the_same_artifact(command, zygote, tmp_path):
    """SIGKILL at moments spread over the run; then one run that is left alone."""
    expected = command("calibrate.py", *TINY, *LONGER, "artifacts=undisturbed")
    arguments = [str(ROOT / "calibrate.py"), *TINY, *LONGER]
    for moment in range(3):
        zygote.start(*arguments, cwd=tmp_path, output=tmp_path)
        deadline = time.monotonic() + 60
        # Before anything is saved, among the activations of the layers and among the gradients.
        while time.monotonic() < deadline and zygote.wait(0.002) is None:
            saved = list(tmp_path.glob("artifacts/*/*/.*.unfinished/*/[0-9]*.safetensors"))
            if len(saved) >= 4 * moment:
                break
        zygote.kill()
        for folder in tmp_path.glob("artifacts/*/*/*"):
            if not folder.name.startswith("."):
                Artifact.load(folder)  # it finished before the kill; then it is whole
    survived = command("calibrate.py", *TINY, *LONGER)
    assert survived.returncode == 0, survived.stderr
    first = tmp_path / expected.stdout.strip()
    second = tmp_path / survived.stdout.strip()
    assert first.name == second.name
    name = "tensors.safetensors"
    assert (first / name).read_bytes() == (second / name).read_bytes()
    described = [json.loads((path / "artifact.json").read_text()) for path in (first, second)]
    for content in described:
        del content["run"], content["content_sha256"]
    assert described[0] == described[1]
    assert [path.name for path in second.parent.iterdir()] == [second.name]


COMMANDS = ["trimtab.commands.calibrate", "trimtab.commands.evaluate"]


@pytest.mark.parametrize(
    "arguments",
    [
        *(
            [name, "--help"]
            for name in (COMMANDS[0], "trimtab.report", "trimtab.adaptivocab.export")
        ),
        [COMMANDS[1], "--cfg", "job"],
        [COMMANDS[1], "--info", "config"],
    ],
    ids=" ".join,
)
def test_output_that_nobody_reads_is_no_failure(tmp_path, arguments):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(
        command, cwd=tmp_path, env=variables(), stdout=writer, stderr=subprocess.PIPE, text=True
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", [*COMMANDS, "trimtab.report"])
def test_a_current_folder_that_was_removed_is_one_line(tmp_path, name):
    (folder := tmp_path / "gone").mkdir()
    gone = "import os, runpy, sys; os.rmdir(os.getcwd()); del sys.argv[0]"
    started = "runpy.run_module(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-P", "-c", f"{gone}; {started}", name]
    command += [str(tmp_path)] if name == "trimtab.report" else []
    done = subprocess.run(command, cwd=folder, env=variables(), capture_output=True, text=True)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "the current folder has been removed: change to one that is there" in line


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_a_module_too(tmp_path, name):
    command = [sys.executable, "-m", name, "--cfg", "job"]
    done = subprocess.run(command, cwd=tmp_path, env=variables(), capture_output=True, text=True)
    assert "_target_: trimtab.models.sources.EmbeddedModel" in done.stdout


def test_standard_output_may_be_closed_from_the_start(tmp_path):
    command = f"{sys.executable} -m {COMMANDS[0]} --cfg job >&-"
    done = subprocess.run(command, shell=True, cwd=tmp_path, env=variables(), capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    "stderr",
    [
        "writer",
        *(
            pytest.param(one, marks=pytest.mark.exhaustive)
            for one in ("os.dup(2)", "os.open('/dev/full', os.O_WRONLY)")
        ),
    ],
)
def test_an_artifact_is_made_where_nobody_reads_what_is_said(tmp_path, stderr):
    code = (
        "import os; reader, writer = os.pipe(); os.close(reader); os.dup2(writer, 1);"
        f"os.dup2({stderr}, 2); from trimtab.commands.calibrate import main; main()"
    )
    arguments = [*TINY, *SMALL, "tracking.mode=disabled"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=tmp_path, env=variables(), text=True,
        capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.glob("artifacts/tiny-llama/larosa/*/artifact.json"))


@pytest.mark.parametrize("script", ["calibrate.py", "evaluate.py"])
def test_help_shows_examples_groups_and_settings(fresh_command, tmp_path, script):
    done = fresh_command(script, "--help")
    assert done.returncode == 0
    for word in (f"python {script}", "larosa", "smollm2-135m", "python-docs", "artifacts:"):
        assert word in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_whole_configuration_is_shown_on_request(command, tmp_path):
    done = command("calibrate.py", "--cfg", "job", "sparsity=0.25")
    assert "sparsity: 0.25" in done.stdout
    assert "_target_: trimtab.larosa.LaRoSA" in done.stdout
    assert "project: ${tracking_default:WANDB_PROJECT,project}" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("chosen", ["method=vattention", "methods=vattention", "methods=baseline"])
def test_what_needs_no_calibration_is_refused_by_name(command, tmp_path, chosen):
    done = command("calibrate.py", *TINY, chosen)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if "error:" in line]
    name = chosen.partition("=")[2]
    assert f"{name} needs no calibration: evaluate it with evaluate.py" in line
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_over_stacks_leaves_out_what_a_stack_does_not_hold(command, tmp_path):
    done = command(
        "calibrate.py", "-m", *TINY, "methods=larosa,[larosa,vattention],fused", "sparsity=0.3",
        "methods.larosa.tokens=512", "methods.larosa.window=64", "size=20", "mode=draft",
        "methods.adaptivocab.tokens=256", "methods.adaptivocab.window=64",
        "methods.adaptivocab.validation_tokens=128", "tracking.mode=disabled",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    folders = [one for one in done.stdout.splitlines() if one.startswith("artifacts/")]
    first, second, other = folders
    assert first == second  # found again
    assert Artifact.load(tmp_path / first).key.config["sparsity"] == 0.3
    assert Path(other).parent.name == "adaptivocab"
