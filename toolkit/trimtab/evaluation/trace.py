"""Lengths of requests from a file of the user's."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trimtab.errors import TrimtabError
from trimtab.evaluation.requests import Length
from trimtab.settings import path_of

COLUMNS = ("prompt_tokens", "new_tokens")
LEAST = 2  # new tokens: one alone is no decoding


def read_trace(setting: str, value: str) -> list[Length]:
    """Return the lengths of a trace, in the order of its lines.

    A line of JSON is an object with `prompt_tokens` and `new_tokens`; a .csv file has these two
    columns, named in its first line. Whatever else is there is not read.

    Parameters
    ----------
    setting, value : str
        The setting that names the file, and the file.

    Raises
    ------
    TrimtabError
        If there is no such file, or no lengths in it, or a line is something else; with its number.
    """
    path = path_of(value)
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeError) as error:
        raise TrimtabError(f"{setting}={value}: cannot be read: {error}") from error
    rows = _of_csv(path, text) if path.suffix == ".csv" else _of_json(path, text)
    found = [_length(path, number, row) for number, row in rows]
    if not found:
        raise TrimtabError(f"{setting}={value}: holds no line with {' and '.join(COLUMNS)}")
    return found


def _of_csv(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    reader = csv.DictReader(text.splitlines())
    try:
        yield from ((reader.line_num, row) for row in reader)
    except csv.Error as error:
        raise TrimtabError(f"{path}:{reader.line_num}: {error}") from error


def _of_json(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except ValueError as error:
                raise TrimtabError(f"{path}:{number}: no JSON: {error}") from error


def _length(path: Path, number: int, row: Any) -> Length:
    found = row if isinstance(row, dict) else {}
    values = [str(found.get(name, "")).strip() for name in COLUMNS]
    sizes = [int(value) if value.isdecimal() else 0 for value in values]
    if sizes[0] < 1 or sizes[1] < LEAST:
        raise TrimtabError(
            f"{path}:{number}: expected prompt_tokens of at least 1 and new_tokens of at least "
            f"{LEAST}, whole numbers; found {json.dumps(row)[:60]}"
        )
    return Length(sizes[1], prompt_tokens=sizes[0])
