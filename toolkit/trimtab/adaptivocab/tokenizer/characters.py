"""Which characters are spaces or numbers to the `tokenizers` library."""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from sys import maxunicode

BROKEN = "[\udc80-\udcff]+"  # bytes that are not UTF-8, as lone surrogates: see `surrogateescape`


def is_space(character: str) -> bool:
    r"""Return whether a character is one of ``\s``."""
    return character.isspace() and character not in "\x1c\x1d\x1e\x1f"


def may_hold_digit(text: str) -> bool:
    """Return whether a text holds a character that is, or may be part of, a number.

    Parameters
    ----------
    text : str
        Bytes that are not UTF-8, which can only be at its ends, are lone surrogates.
    """
    if any(map(_is_number, text)):
        return True
    fragments = [run.encode("utf-8", "surrogateescape") for run in re.findall(BROKEN, text)]
    return any(
        part in _number_parts()
        for run in fragments
        for part in re.findall(rb"^[^\xc0-\xff]+|[\xc0-\xff][^\xc0-\xff]*", run)
    )


def _is_number(character: str) -> bool:
    """Return whether a character is a number, or may be one in a later Unicode than Python's."""
    return unicodedata.category(character) in ("Nd", "Nl", "No", "Cn")


@cache
def _number_parts() -> frozenset[bytes]:
    """Return every part of the UTF-8 of a number."""
    known = (chr(code) for code in range(maxunicode + 1))
    numbers = [one.encode() for one in known if unicodedata.category(one)[0] == "N"]
    return frozenset(
        one[start:end]
        for one in numbers
        for start in range(len(one))
        for end in range(start + 1, len(one) + 1)
    )
