"""A regular expression of many texts that is quick to refuse any other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from itertools import takewhile

BRANCHES = 4  # alternatives in a row; more are first divided by what they begin with

_ESCAPED = str.maketrans({mark: "\\" + mark for mark in r"\.[]{}()*+?^$|-&"})


def alternation(guarded: Mapping[str, str]) -> str:
    """Return a pattern of any of the texts before its guard, longest first, as a prefix tree."""
    branches: dict[str, dict[str, str]] = defaultdict(dict)
    for text, guard in guarded.items():
        if text:
            branches[text[0]][text] = guard
    alternatives: list[tuple[str, str]] = []
    for first, texts in sorted(branches.items()):
        ends = zip(min(texts), max(texts), strict=False)
        shared = "".join(low for low, _ in takewhile(lambda pair: pair[0] == pair[1], ends))
        rest = {text[len(shared) :]: guard for text, guard in texts.items()}
        alternatives.append((first, shared.translate(_ESCAPED) + alternation(rest)))
    parts = _divided(alternatives)
    if "" in guarded:
        parts.append(guarded[""])
    return parts[0] if len(parts) == 1 else f"(?:{'|'.join(parts)})"


def _divided(alternatives: list[tuple[str, str]]) -> list[str]:
    """Return alternatives, given with what they begin with, as a few that are quick to refuse."""
    if len(alternatives) <= BRANCHES:
        return [pattern for _, pattern in alternatives]
    half = len(alternatives) // 2
    firsts = "".join(first for first, _ in alternatives[:half]).translate(_ESCAPED)
    left, right = ("|".join(_divided(part)) for part in (alternatives[:half], alternatives[half:]))
    return [f"(?=[{firsts}])(?:{left})", f"(?:{right})"]
