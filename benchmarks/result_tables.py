"""Tables of the benchmarks' reports, and where they go in RESULTS.md."""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Estimate = dict[str, float]
IN_STEPS = (
    "in the mean over threads. Outside is the time around the C++ operator; inputs are norms and "
    "selections; activations count as linear layers."
)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def work_table(
    columns: Sequence[str], rows: Iterable[tuple[Sequence[str], Mapping[str, float]]], digits: int
) -> str:
    """Return a table of milliseconds by kind of work, and of all together.

    Parameters
    ----------
    columns : sequence of str
        What tells the rows apart.
    rows : iterable of (sequence of str, mapping of str to float)
        What they have there, and the milliseconds.
    digits : int
    """
    known = list(rows)
    cells = [
        [*told, *(f"{one:.{digits}f}" for one in (*work.values(), sum(work.values())))]
        for told, work in known
    ]
    return table((*columns, *known[0][1], "in all"), cells)


def step_work(
    what: str, columns: Sequence[str], rows: Iterable[tuple[Sequence[str], Mapping[str, float]]]
) -> list[str]:
    """Return where the engine's time of `what` goes, as a sentence and a table.

    Nothing where no row knows it; see `work_table`.
    """
    known = [(told, work) for told, work in rows if work]
    if not known:
        return []
    return [f"Where a {what}'s milliseconds go, {IN_STEPS}", work_table(columns, known, 2)]


def commit(environment: Mapping[str, Any]) -> str:
    """Return the beginning of a checkout's commit, and whether the tree differed from it."""
    name, plus, changes = str(environment["commit"] or "unknown").partition("+")
    return name[:7] + plus + changes


def with_interval(value: Estimate, digits: int) -> str:
    low, high = (f"{value[end]:.{digits}f}" for end in ("low", "high"))
    return f"{value['estimate']:.{digits}f} [{low}, {high}]"


def errors(values: Sequence[Estimate]) -> list[list[float]]:
    """Return how far intervals reach below and above their estimates, as plots want it."""
    return [
        [one["estimate"] - one["low"] for one in values],
        [one["high"] - one["estimate"] for one in values],
    ]


def drawn(draw: Callable[[Any, Path], None], markdown: Callable[[Any], str], file: Path) -> str:
    """Draw the plot beside a file of data, and return the Markdown."""
    content = json.loads(file.read_text("utf-8"))
    draw(content, file.with_suffix(".png"))
    return markdown(content)


def report_command(place: str, description: str, write_report: Callable[[Path], str]) -> None:
    """Make a report of a file of data again, and put it in its place in a file if one is named."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--into", type=Path, help=f"a Markdown file with the place `{place}`")
    options = parser.parse_args()
    report = write_report(options.file)
    if options.into:
        plot = os.path.relpath(options.file.with_suffix(".png"), options.into.parent)
        insert(options.into, place, f"\n![{place}]({Path(plot).as_posix()})\n\n{report}\n")
    print(report)


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
