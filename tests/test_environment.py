"""What a result says of the machine, and that asking changes nothing there."""

from __future__ import annotations

import os
import subprocess

import pytest
import torch

from trimtab import environment


def test_the_commit_is_read_without_touching_the_checkout(tmp_path, monkeypatch):
    """Else a commit made meanwhile would find the index locked."""
    author = ["-c", "user.name=a", "-c", "user.email=a@b"]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(tmp_path), *author, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    file, index = tmp_path / "file", tmp_path / ".git" / "index"
    file.write_text("text")
    for arguments in (["init"], ["add", "file"], ["commit", "-m", "first"]):
        git(*arguments)
    os.utime(file, (1, 1))  # git would note in the index that the content is the same
    before = index.read_bytes()
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "toolkit" / "trimtab" / "x.py"))
    assert environment._commit() == git("rev-parse", "HEAD")
    assert index.read_bytes() == before
    (tmp_path / "notes").write_text("nothing that runs reads what git does not track")
    assert environment._commit() == git("rev-parse", "HEAD")
    file.write_text("other")
    assert environment._commit() == git("rev-parse", "HEAD") + "+changes"


def checkout(folder, monkeypatch):
    (folder / ".git").mkdir()
    monkeypatch.setattr(environment, "__file__", str(folder / "toolkit" / "trimtab" / "x.py"))


def program(folder, name, content):
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{content}\n")
    path.chmod(0o755)


REFUSES = (
    "echo \"fatal: detected dubious ownership in repository at '/x'\" >&2; echo more >&2; exit 128"
)


@pytest.mark.parametrize(
    ("git", "reason"),
    [
        (None, "git is not installed"),
        (REFUSES, "git: fatal: detected dubious ownership in repository at '/x'"),
        ("exit 3", "git: exit status 3"),
        ('case "$*" in *status*) echo no status >&2; exit 1;; esac; echo abc', "git: no status"),
    ],
)
def test_a_commit_that_git_does_not_tell_is_absent_for_gits_reason(
    tmp_path, monkeypatch, git, reason
):
    checkout(tmp_path, monkeypatch)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    if git:
        program(tmp_path / "bin", "git", git)
    found, reasons = environment.environment_and_reasons(0)
    assert (found["commit"], reasons["commit"]) == (None, reason)


def test_outside_a_checkout_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "toolkit" / "trimtab" / "x.py"))
    found, reasons = environment.environment_and_reasons(0)
    assert (found["commit"], reasons["commit"]) == (None, "not run from a git checkout")


@pytest.mark.parametrize(
    ("device", "cuda", "hip", "driver", "expected", "reasons"),
    [
        (False, None, None, None, [None] * 3, ["PyTorch is built without CUDA"] * 3),
        (False, "12", None, None, [None] * 3, ["no CUDA device"] * 3),
        (True, "12", None, None, ["X", None, "12"], [None, "nvidia-smi is not installed", None]),
        (True, "12", None, "echo 57", ["X", "57", "12"], [None] * 3),
        (True, None, "6", None, ["X", None, None], [None, *["PyTorch is built for ROCm 6"] * 2]),
    ],
)  # fmt: skip
def test_what_is_not_known_of_a_gpu_has_its_true_reason(
    tmp_path, monkeypatch, device, cuda, hip, driver, expected, reasons
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: device)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "X")
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    if driver:
        program(tmp_path / "bin", "nvidia-smi", driver)
    found, why = environment.environment_and_reasons(0)
    names = "gpu", "driver", "cuda"
    assert [found[name] for name in names] == expected
    assert [why.get(name) for name in names] == reasons


@pytest.mark.parametrize(
    ("limit", "used", "dropped", "expected"),
    [
        ("max", 5_000_000, 0, 3000 * 1024),  # what the machine has
        (2_000_000, 500_000, 0, 1_500_000),
        (2_000_000, 2_000_000, 700_000, 700_000),  # files that it has read
        (2_000_000, 2_100_000, 0, 0),
        (10_000_000, 500_000, 0, 3000 * 1024),
    ],
)
def test_memory_that_can_be_taken_is_what_the_machine_and_the_control_group_leave(
    monkeypatch, tmp_path, limit, used, dropped, expected
):
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:   3000 kB\n")
    monkeypatch.setattr(environment, "MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(environment, "CONTROL_GROUP", tmp_path)
    assert environment.available_host_bytes() == 3000 * 1024  # of no control group
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text(f"{used}\n")
    (tmp_path / "memory.stat").write_text(f"anon 12\nfile 34\ninactive_file {dropped}\n")
    assert environment.available_host_bytes() == expected
