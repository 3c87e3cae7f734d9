"""The benchmarks' arguments: types that refuse what cannot be, and the command line as a whole."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path


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
