"""Tables of the benchmarks' reports, and where they go in RESULTS.md."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

Estimate = dict[str, float]


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def with_interval(value: Estimate, digits: int) -> str:
    low, high = (f"{value[end]:.{digits}f}" for end in ("low", "high"))
    return f"{value['estimate']:.{digits}f} [{low}, {high}]"


def insert_report(path: Path, place: str, report: str, plot: Path) -> None:
    """Put a report, and its plot by a path from there, in its place in a file."""
    link = Path(os.path.relpath(plot, path.parent)).as_posix()
    insert(path, place, f"\n![{place}]({link})\n\n{report}\n")


def insert(path: Path, place: str, text: str) -> None:
    """Replace what is between ``<!-- place -->`` and ``<!-- end of place -->`` in a file.

    Raises
    ------
    ValueError
        If the file has no such place.
    """
    marks = f"<!-- {place} -->", f"<!-- end of {place} -->"
    content = path.read_text("utf-8")
    pattern = f"({re.escape(marks[0])}\n).*?({re.escape(marks[1])})"
    filled, places = re.subn(pattern, lambda m: f"{m[1]}{text}{m[2]}", content, flags=re.DOTALL)
    if places != 1:
        raise ValueError(f"{path} has {places} places for {place}: expected {' … '.join(marks)}")
    path.write_text(filled, "utf-8")
