"""The benchmarks' command lines: types that refuse what cannot be, and errors in one line."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path

from trimtab.errors import TrimtabError


def positive(text: str) -> int:
    """Return a whole number of at least 1."""
    if not _is_size(text):
        raise argparse.ArgumentTypeError(f"{text}: expected a whole number of at least 1")
    return int(text)


def above_zero(text: str) -> float:
    """Return a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: expected a number above 0")
    return value


def sizes(text: str, like: str) -> str:
    """Return a text of sizes joined by x, as many as in the example `like`."""
    found = text.split("x")
    if len(found) != len(like.split("x")) or not all(map(_is_size, found)):
        raise argparse.ArgumentTypeError(f"{text}: expected sizes of at least 1, as in {like}")
    return text


def _is_size(text: str) -> bool:
    return text.isdecimal() and int(text) >= 1


def command() -> list[str]:
    """Return the command line, its script as seen from the checkout."""
    script = Path(sys.argv[0])
    return [f"{script.resolve().parent.name}/{script.name}", *sys.argv[1:]]


def one_line(run: Callable[[], None]) -> None:
    """Run a benchmark; a mistake of the user's ends it in one line and exit code 1."""
    try:
        run()
    except TrimtabError as error:
        sys.exit(f"error: {error}")
