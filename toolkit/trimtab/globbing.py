"""Files by a pattern with ``**``, where links may lead anywhere."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from os.path import realpath
from pathlib import Path


def matching(pattern: str) -> Iterator[Path]:
    """Yield what matches a pattern, in any order."""
    yield from map(Path, _names(pattern))


def once(paths: Sequence[Path]) -> list[Path]:
    """Return each file once, by the first of its names, though several links lead to it."""
    first: dict[str, Path] = {}
    for path in paths:
        first.setdefault(realpath(path), path)
    return list(first.values())


def _names(pattern: str) -> Iterator[str]:
    """Yield what matches a pattern. Python's own ``**`` follows links that lead above for ever."""
    parts = pattern.split("/")
    if "**" not in parts:
        yield from glob.glob(pattern)
        return
    place = parts.index("**")
    rest = "/".join(parts[place + 1 :]) or "*"
    for top in glob.glob("/".join([*parts[:place], ""])) if place else ["."]:
        for folder in _folders(top):
            yield from _names(f"{glob.escape(folder)}/{rest}")


def _folders(top: str) -> Iterator[str]:
    """Yield a folder and those below it, each once; hidden ones aside."""
    seen = set()
    for folder, below, _ in os.walk(top, followlinks=True):
        if (real := realpath(folder)) in seen:
            below.clear()
            continue
        seen.add(real)
        below[:] = sorted(name for name in below if not name.startswith("."))
        yield folder


def literal(pattern: Path) -> tuple[Path, str] | None:
    """Return a folder whose name is taken for a pattern, and how to write it; None without one."""
    for folder in reversed(pattern.parents):
        if folder.is_dir() and not glob.glob(str(folder)):
            return folder, glob.escape(str(folder))
    return None
