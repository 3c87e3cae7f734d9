"""Text in files and in records, for `trimtab.corpora`."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trimtab.errors import TrimtabError

BYTE_ORDER_MARK = "\ufeff"
MARKS = {  # the first that a file begins with tells: a mark of UTF-32 begins with one of UTF-16
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
CALLED = {
    bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object",
}  # fmt: skip
CONVERT = "convert it: iconv -f {} -t UTF-8"


def read_text(path: Path) -> str:
    """Return the text of a file.

    Raises
    ------
    TrimtabError
        If it is no UTF-8 text.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = _undecoded(error) if isinstance(error, UnicodeDecodeError) else error
        raise TrimtabError(f"{path} cannot be read as UTF-8 text: {reason}") from error
    if "\0" in text:
        kind = "UTF-32" if "\0\0\0" in text else "UTF-16"
        raise TrimtabError(f"{path} holds NUL characters: if it is {kind}, {CONVERT.format(kind)}")
    return text


def _undecoded(error: UnicodeDecodeError) -> str:
    """Say what bytes may be that are no UTF-8, and how to convert them."""
    for mark, kind in MARKS.items():
        if error.object.startswith(mark):
            return f"it is {kind}, {CONVERT.format(kind)}"
    what = f"{error.reason} at byte {error.start}"
    return f"{what}; if it is ISO-8859-1, {CONVERT.format('ISO-8859-1')}"


def json_lines(path: Path, field: str) -> Iterator[tuple[int, str]]:
    """Yield the number and the text of every line of a file that is not empty.

    Raises
    ------
    TrimtabError
        If a line is no JSON object with a text in this field.
    """
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        line = line.lstrip(BYTE_ORDER_MARK)
        if not line.strip():
            continue
        try:
            record: Any = json.loads(line)
        except json.JSONDecodeError as error:
            raise TrimtabError(f"{path}, line {number}: not JSON: {error}") from error
        except (ValueError, RecursionError) as error:
            raise TrimtabError(
                f"{path}, line {number}: JSON that cannot be read: a number of too many digits, or "
                "too many brackets within each other; drop that field"
            ) from error
        yield number, text_of(record, field, f"{path}, line {number}")


def text_of(record: Any, field: str, place: str) -> str:
    """Return the text in a field of a record.

    Raises
    ------
    TrimtabError
        If there is none; it names the place that the record is from.
    """
    if isinstance(record, dict) and field in record and record[field] is None:
        raise TrimtabError(
            f"{place}: the field {field!r} is null: drop the record, or give it a text, which may "
            "be empty"
        )
    if isinstance(record, dict) and field in record and not isinstance(record[field], str):
        kind = type(record[field])
        holds = CALLED.get(kind, f"a {kind.__name__}")
        raise TrimtabError(f"{place}: the field {field!r} holds {holds}: expected a text")
    if not isinstance(record, dict) or field not in record:
        fields = ", ".join(record) if isinstance(record, dict) else type(record).__name__
        raise TrimtabError(
            f"{place}: no text in the field {field!r} (found: {fields}); set corpus.text_field"
        )
    return str(record[field])
