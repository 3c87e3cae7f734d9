"""Calibrations of one artifact at the same time, folders that cannot be used, what is missing."""

from __future__ import annotations

import errno
import fcntl
import re
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from tests.conftest import tiny
from trimtab import calibration, checkpoints
from trimtab.adaptivocab import AdaptiVocab
from trimtab.artifact import DESCRIPTION
from trimtab.calibration import calibrate, find
from trimtab.corpus import Corpus
from trimtab.environment import package_versions
from trimtab.errors import ArtifactError, ConfigError, TrimtabError
from trimtab.larosa import LaRoSA

METHOD = LaRoSA(tokens=512, window=64)
PATIENCE = 120


@pytest.fixture
def heard(monkeypatch) -> dict[str, threading.Event]:
    """Return events, set when a calibration says that it waits or that it found an artifact."""
    events = {"Another": threading.Event(), "Found:": threading.Event()}

    def say(message: str) -> None:
        if (event := events.get(message.split()[0])) is not None:
            event.set()

    for module in (calibration, checkpoints):
        monkeypatch.setattr(module, "say", say)
    return events


@pytest.fixture
def thread():
    with ThreadPoolExecutor(2) as pool:
        yield pool.submit


def place(corpus, root: Path) -> Path:
    loaded = tiny()
    return METHOD.key(loaded.fingerprint, loaded.tokenizer, corpus).folder(root, loaded.name)


def lock_of(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.lock")


def test_the_second_of_two_calibrations_waits_and_takes_what_the_first_made(
    monkeypatch, corpus, tmp_path, heard, thread
):
    begun, go, fits = threading.Event(), threading.Event(), []

    def fit(self, model, tokenizer, corpus, checkpoint):
        fits.append(checkpoint)
        begun.set()
        assert go.wait(PATIENCE)
        return whole(self, model, tokenizer, corpus, checkpoint)

    whole = LaRoSA.fit
    monkeypatch.setattr(LaRoSA, "fit", fit)
    first = thread(calibrate, tiny(), METHOD, corpus, tmp_path)
    assert begun.wait(PATIENCE)
    second = thread(calibrate, tiny(), METHOD, corpus, tmp_path)
    waited = heard["Another"].wait(PATIENCE / 4)
    go.set()
    made, found = first.result(PATIENCE), second.result(PATIENCE)
    assert waited
    assert len(fits) == 1
    assert heard["Found:"].is_set()
    assert made[1] == found[1]
    assert made[0].run == found[0].run
    assert list(made[1].parent.iterdir()) == [made[1]]


@pytest.mark.parametrize("force", [False, True])
def test_who_waited_calibrates_where_nothing_was_made_or_it_is_forced(
    corpus, tmp_path, heard, thread, force
):
    """The lock's holder removes the file, as `calibrate` does: a new one has to be locked."""
    folder = place(corpus, tmp_path)
    folder.parent.mkdir(parents=True)
    before = calibrate(tiny(), METHOD, corpus, tmp_path)[0] if force else None
    with lock_of(folder).open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        waiting = thread(calibrate, tiny(), METHOD, corpus, tmp_path, force=force)
        said = heard["Another"].wait(PATIENCE / 4)
        made = {path.name for path in folder.parent.iterdir()}
        shutil.rmtree(folder.parents[2] / "tiny-llama") if not force else lock_of(folder).unlink()
    artifact, at = waiting.result(PATIENCE)
    assert said
    assert made == {lock_of(folder).name, *([folder.name] if force else [])}
    assert at == folder
    assert before is None or before.run != artifact.run
    assert not heard["Found:"].is_set()
    assert list(folder.parent.iterdir()) == [folder]


def test_the_lock_of_a_killed_process_holds_nobody_up(corpus, tmp_path, heard):
    lock = lock_of(place(corpus, tmp_path))
    lock.parent.mkdir(parents=True)
    code = (
        "import fcntl, sys, time; file = open(sys.argv[1], 'wb'); "
        "fcntl.flock(file, fcntl.LOCK_EX); print(flush=True); time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    assert lock.exists()
    _, folder = calibrate(tiny(), METHOD, corpus, tmp_path)
    assert not heard["Another"].is_set()
    assert list(folder.parent.iterdir()) == [folder]


def test_a_failed_calibration_leaves_no_lock_and_only_folders_that_were_there(corpus, tmp_path):
    root = tmp_path / "artifacts"
    root.mkdir()
    for target in (root, tmp_path / "new" / "place"):
        with pytest.raises(TrimtabError, match="windows of 512 tokens"):
            calibrate(tiny(), LaRoSA(tokens=10_000_000), corpus, target)
    assert list(tmp_path.rglob("*")) == [root]


@pytest.mark.parametrize("torch_then", ["1.0", None])
def test_an_unfinished_calibration_of_other_versions_is_not_resumed(
    monkeypatch, corpus, tmp_path, capsys, torch_then
):
    def killed(*_):
        raise KeyboardInterrupt

    folder = place(corpus, tmp_path)
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    with monkeypatch.context() as patch:
        patch.setattr("trimtab.larosa.thresholds.find_thresholds", killed)
        if torch_then:
            versions = package_versions() | {"torch": torch_then}
            patch.setattr("trimtab.checkpoints.package_versions", lambda: versions)
        with pytest.raises(KeyboardInterrupt):
            calibrate(tiny(), METHOD, corpus, tmp_path)
    costs = sorted((unfinished / "costs").iterdir())
    assert costs
    (unfinished / "costs" / "foreign").touch()
    with monkeypatch.context() as patch:
        patch.setattr("trimtab.larosa.thresholds.find_thresholds", killed)
        with pytest.raises(KeyboardInterrupt):
            calibrate(tiny(), METHOD, corpus, tmp_path)
    told = f"{unfinished.name}: measured with torch 1.0, now " in capsys.readouterr().err
    assert told == (not (unfinished / "costs" / "foreign").exists()) == bool(torch_then)
    calibrate(tiny(), METHOD, corpus, tmp_path)
    assert list(folder.parent.iterdir()) == [folder]


def test_a_file_system_without_locks_is_refused(monkeypatch, corpus, tmp_path):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(ConfigError, match=r"^artifacts=.*cannot be locked: No locks available; "):
        calibrate(tiny(), METHOD, corpus, tmp_path)


def test_a_root_that_cannot_be_written_is_refused_before_the_work(monkeypatch, corpus, tmp_path):
    monkeypatch.setattr(LaRoSA, "fit", None)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"^artifacts=.*cannot be written: Not a directory; "):
        calibrate(tiny(), METHOD, corpus, tmp_path / "file")


def test_a_damaged_artifact_is_not_said_to_be_found(corpus, tmp_path, heard):
    _, folder = calibrate(tiny(), METHOD, corpus, tmp_path)
    (folder / DESCRIPTION).unlink()
    with pytest.raises(
        ArtifactError, match=f"it holds no {DESCRIPTION}; calibrate.py .*force=true"
    ):
        calibrate(tiny(), METHOD, corpus, tmp_path)
    assert not heard["Found:"].is_set()
    calibrate(tiny(), METHOD, corpus, tmp_path, force=True)
    calibrate(tiny(), METHOD, corpus, tmp_path)
    assert heard["Found:"].is_set()


@pytest.mark.parametrize("setting", ["artifacts", "tracking.folder"])
@pytest.mark.parametrize(
    "script", ["calibrate.py", "evaluate.py on_missing=calibrate"], ids=["calibrate", "evaluate"]
)
def test_a_place_that_cannot_be_written_is_one_line_before_the_model(
    command, tmp_path, script, setting
):
    (tmp_path / "afile").touch()
    program, *arguments = script.split()
    done = command(program, "model=hub", "model.name=no/where", *arguments, f"{setting}=afile")
    assert done.returncode == 1
    (line,) = (one for one in done.stderr.splitlines() if not one.startswith("Folder: "))
    assert f"{setting}=afile: cannot be written: Not a directory; name a folder that can" in line


@pytest.mark.parametrize("method", [AdaptiVocab(max_bpb_increase=None), LaRoSA()])
def test_a_missing_artifact_comes_with_a_command_that_makes_it(
    method, corpus: Corpus, tmp_path: Path
) -> None:
    with pytest.raises(ArtifactError, match=f"no artifact of {method.name}") as error:
        find(tiny(), method, corpus, tmp_path)
    (command,) = re.findall(r"calibrate\.py (.*) and the same model", str(error.value))
    overrides = OverridesParser.create().parse_overrides(command.split())
    values = {one.key_or_group: one.value() for one in overrides}
    assert values.pop("method") == method.name
    assert {**type(method)().config(), **values} == method.config()
    assert all(type(method)().config()[name] != value for name, value in values.items())


def test_the_weights_are_read_for_a_fingerprint_once(monkeypatch, corpus, tmp_path):
    loaded = tiny()
    monkeypatch.setattr("trimtab.models.fingerprint.fingerprint", None)
    artifact, folder = calibrate(loaded, METHOD, corpus, tmp_path)
    assert artifact.key.model_fingerprint == loaded.fingerprint
    assert folder.name == artifact.key.digest
