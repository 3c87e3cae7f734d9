"""Errors a user can act on: the commands print them as one line and exit with code 1."""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Sequence
from enum import Enum
from numbers import Real
from typing import Any

FULL = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
)  # writing to an open file, the error does not name it

UNNAMED = "standard output, or a temporary file"
ROOM = "set TMPDIR to a folder with room"
NO_TEMPORARY = "No usable temporary directory"  # how Python's tempfile begins, and names no file
GONE = "the current folder has been removed: change to one that is there"


NOT_A_TEXT = re.compile(r"(?i)[+-]?(\d[\d_]*\.?\d*|\.\d+)(e[+-]?\d+)?|true|false|null|none")


class TrimtabError(Exception):
    """Something the user can put right; the message says what and how."""


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says; its type where it says nothing."""
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)


def nearest(word: str, candidates: Sequence[str]) -> str:
    """Return a hint at what was probably meant, or nothing."""
    close = difflib.get_close_matches(word, candidates, n=1)
    return f", did you mean {close[0]}?" if close else ""


def as_given(value: object) -> str:
    """Return a value as it is typed, or as Python writes it where it would look like another kind.

    So does a text with nothing but a number, or an object that only converts to one.
    """
    if isinstance(value, str) and not isinstance(value, Enum):
        return repr(value) if NOT_A_TEXT.fullmatch(value) else value
    converts = hasattr(value, "__float__") and not isinstance(value, Real)
    return repr(value) if converts else str(value)


def as_text(value: str) -> str:
    """Return a text that any file can hold: bytes of a name that are no UTF-8 are escaped."""
    return value.encode("utf-8", "backslashreplace").decode("utf-8")


def on_one_line(error: TrimtabError | OSError) -> str:
    """Return all that an error says: of one of the system's, which file it is about, and why.

    Files of the toolkit's own are named, so one without a name is a stream or a library's.
    """
    if isinstance(error, OSError) and error.strerror:
        full = error.errno in FULL
        # Of two names the second is the one that is written.
        if of := (full and error.filename2) or error.filename:
            return as_text(f"{of}: {error.strerror}")
        if full:
            return f"{UNNAMED}: {error.strerror}"
        if error.strerror.startswith(NO_TEMPORARY):
            return f"{error.strerror}: {ROOM}"
        if isinstance(error, FileNotFoundError):
            return GONE
        return error.strerror
    return as_text(" ".join(str(error).split()))


class ConfigError(TrimtabError):
    """A configuration value that cannot be used.

    Parameters
    ----------
    key : str
        Full name of the setting, as typed on the command line.
    value : Any
        The value that was refused.
    expected : str
        What would have been accepted, or what to do.
    """

    def __init__(self, key: str, value: Any, expected: str) -> None:
        super().__init__(f"{key}={value}: {expected}")
        self._given = key, value, expected

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how launchers hand the error to another process."""
        return type(self), self._given


class ArtifactError(TrimtabError):
    """An artifact that is missing, damaged, or belongs to something else."""


class MissingArtifactError(ArtifactError):
    """An artifact that a calibration would make, where none may be made."""


class MisfitError(TrimtabError):
    """A method that does not fit the model or another method of its stack."""
