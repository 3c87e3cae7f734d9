"""The folder that a killed calibration resumes from: whose it is, and what versions measured it."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from trimtab.environment import package_versions
from trimtab.errors import ConfigError
from trimtab.files import require_writable, write_json
from trimtab.progress import say

STAMP = "calibration.json"
MEASURING = "trimtab", "torch", "transformers", "triton", "numpy"  # packages that statistics are of


def stamp_in(folder: Path) -> dict[str, Any] | None:
    """Return what a checkpoint says of itself; None where it says nothing that can be read."""
    with suppress(ValueError, OSError):
        found = json.loads((folder / STAMP).read_text("utf-8"))
        return found if isinstance(found, dict) else None
    return None


@contextmanager
def alone(folder: Path, setting: str) -> Iterator[None]:
    """Keep other calibrations from `folder` for the time of the ``with``; wait for one that has it.

    The lock, a file beside the folder, ends with its process, however that ends. It is removed
    again, and so are the folders that were made for it and are still empty.

    Parameters
    ----------
    setting : str
        By which the caller has named the folder, or one that holds it.

    Raises
    ------
    ConfigError
        If there can be no such file.
    """
    path = folder.with_name(f".{folder.name}.lock")
    waited = False
    while True:
        require_writable(setting, path.parent)
        made = [parent for parent in path.parents if not parent.exists()]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("wb")
        except FileNotFoundError:  # another process has just removed an empty folder
            continue
        with file:
            if not _lock(file, folder, setting, quiet=waited):
                waited = True
            if not _is_at(path, file):  # removed by the one that was waited for
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
                with suppress(OSError):  # not empty
                    for parent in made:
                        parent.rmdir()
            return


def _lock(file: IO[bytes], folder: Path, setting: str, *, quiet: bool) -> bool:
    """Lock `file`, and return whether it could be had at once."""
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if not quiet:
                say(f"Another calibration has {folder}: waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
            return False
    except OSError as error:
        reason = f"cannot be locked: {error.strerror}; name a folder on a file system that can"
        raise ConfigError(setting, folder.parent, reason) from error


def _is_at(path: Path, file: IO[bytes]) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    return False


@contextmanager
def resumable(folder: Path, digest: str) -> Iterator[None]:
    """Have `folder` be the checkpoint of one calibration for the time of the ``with``.

    What other versions of the packages measured is removed, so that no artifact holds statistics
    of two. A calibration that ends before it has measured anything leaves no folder.

    Parameters
    ----------
    digest : str
        Of the artifact's key.
    """
    versions = package_versions()
    stamp = {"digest": digest, "packages": {name: versions[name] for name in MEASURING}}
    if folder.exists() and any(folder.iterdir()) and (found := stamp_in(folder)) != stamp:
        say(f"{folder}: {_difference(found, stamp)}: measuring all of it anew")
        _empty(folder)
    write_json(folder / STAMP, stamp)
    try:
        yield
    finally:
        with suppress(OSError):
            if [path.name for path in folder.iterdir()] == [STAMP]:
                shutil.rmtree(folder)


def _difference(found: dict[str, Any] | None, stamp: dict[str, Any]) -> str:
    known = (found or {}).get("packages")
    if not isinstance(known, dict):
        return f"no {STAMP} says which versions measured what is there"
    changed = [
        f"{name} {known.get(name)}, now {version}"
        for name, version in stamp["packages"].items()
        if known.get(name) != version
    ]
    return f"measured with {' and '.join(changed)}"


def _empty(folder: Path) -> None:
    """Remove what a folder holds; the folder itself may be a link or a mounted one."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
