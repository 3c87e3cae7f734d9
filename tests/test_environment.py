"""What a result says of the machine, and that asking changes nothing there."""

from __future__ import annotations

import os
import subprocess

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
