"""Which n-grams stand in a row of base tokens: leftmost first, and the longest there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trimtab.adaptivocab.ngrams import NGrams

END = -1  # under it, a node of the tree holds the id of the n-gram that ends there


class Matcher:
    """Finds n-grams.

    Parameters
    ----------
    ngrams : NGrams
    """

    def __init__(self, ngrams: NGrams) -> None:
        self._root: dict[int, Any] = {}
        for number, pieces in enumerate(ngrams.pieces):
            node = self._root
            for piece in pieces:
                node = node.setdefault(piece, {})
            node[END] = ngrams.base_size + number

    def __call__(self, ids: Sequence[int]) -> list[tuple[int, int, int]]:
        """Return start, end and new id of every token that base ids become."""
        found: list[tuple[int, int, int]] = []
        start = 0
        while start < len(ids):
            longest = start, start + 1, ids[start]
            node = self._root
            for position in range(start, len(ids)):
                if ids[position] not in node:
                    break
                node = node[ids[position]]
                if END in node:
                    longest = start, position + 1, node[END]
            found.append(longest)
            start = longest[1]
        return found
