"""The folder that a killed calibration resumes from: whose it is, and what versions measured it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from trimtab.environment import package_versions
from trimtab.files import write_json
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
