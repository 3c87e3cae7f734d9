"""Lengths of requests from a file of the user's."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from trimtab.config import ServingConfig
from trimtab.errors import ConfigError, TrimtabError
from trimtab.evaluation.requests import Length
from trimtab.settings import path_of

COLUMNS = ("prompt_tokens", "new_tokens")
LEAST = 2  # new tokens: one alone is no decoding
TRACE = "serving.trace"


def trace_of(config: ServingConfig) -> list[Length]:
    """Return the lengths in `serving.trace`; none where it is not set, or nothing is served.

    Raises
    ------
    ConfigError
        If it has fewer than the largest number of requests.
    TrimtabError
        If it cannot be read; see `read_trace`.
    """
    most = max(config.requests, default=0)
    if config.trace is None or not most:
        return []
    found = read_trace(config.trace)
    if len(found) < most:
        raise ConfigError("serving.requests", most, f"{TRACE} holds {len(found)}: lower it")
    return found


def read_trace(file: str) -> list[Length]:
    """Return the lengths of a trace, in the order of its lines.

    A line of a .jsonl file is an object with `prompt_tokens` and `new_tokens`; a .csv file has
    these two columns, named in its first line. Whatever else is there is not read.

    Raises
    ------
    ConfigError
        If the file's name ends otherwise.
    TrimtabError
        If there is no such file, or no lengths in it, or a line is something else; with its number.
    """
    path = path_of(file)
    rows_of = READERS.get(path.suffix.lower())
    if rows_of is None:
        raise ConfigError(TRACE, file, f"expected a name that ends in {' or '.join(READERS)}")
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeError) as error:
        raise ConfigError(TRACE, file, f"cannot be read: {error}") from error
    found = [_length(path, number, row) for number, row in rows_of(path, text)]
    if not found:
        raise ConfigError(TRACE, file, f"holds no line with {' and '.join(COLUMNS)}")
    return found


def _of_csv(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    reader = csv.DictReader(io.StringIO(text))
    try:
        _require_columns(path, 1, reader.fieldnames or ())
        yield from ((reader.line_num, row) for row in reader)
    except csv.Error as error:
        raise TrimtabError(f"{path}:{reader.line_num}: {error}") from error


def _of_json(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise TrimtabError(f"{path}:{number}: no JSON: {error}") from error
            if isinstance(row, dict):
                _require_columns(path, number, row)
            yield number, row


READERS = {".jsonl": _of_json, ".csv": _of_csv}


def _require_columns(path: Path, number: int, names: Iterable[str]) -> None:
    there = [name.strip() for name in names]
    if missing := [name for name in COLUMNS if name not in there]:
        raise TrimtabError(
            f"{path}:{number}: has no {' and no '.join(missing)}; it has: {', '.join(there)}"
        )


def _length(path: Path, number: int, row: Any) -> Length:
    named = row.items() if isinstance(row, dict) else ()
    found = {str(name).strip(): value for name, value in named}
    sizes = [_whole(found.get(name)) for name in COLUMNS]
    if sizes[0] < 1 or sizes[1] < LEAST:
        raise TrimtabError(
            f"{path}:{number}: expected prompt_tokens of at least 1 and new_tokens of at least "
            f"{LEAST}, whole numbers; found {json.dumps(row)[:60]}"
        )
    return Length(sizes[1], prompt_tokens=sizes[0])


def _whole(value: Any) -> int:
    """Return a whole number, which may be written 12.0; 0 where it is none."""
    try:
        number = float(str(value))
    except ValueError:
        return 0
    return int(number) if number.is_integer() else 0
