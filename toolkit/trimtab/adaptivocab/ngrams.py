"""N-grams of base tokens that are tokens themselves, and where they occur in a text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

PADDING = -1  # fills the rows of `NGrams.to_tensor` after an n-gram's last token
END = -1  # the key under which a node of `Matcher` keeps the id of the n-gram that ends there


@dataclass(frozen=True)
class NGrams:
    """New tokens, each of which stands for two or more base tokens in a row.

    Parameters
    ----------
    base_size : int
        Id of the first n-gram: no less than the base tokenizer's size and the rows of the base
        model's embedding, so that every old id keeps its meaning.
    tokens : tuple of tuple of int
        The base token ids of every n-gram; n-gram number i has the id ``base_size + i``.
    """

    base_size: int
    tokens: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def size(self) -> int:
        """Rows of the extended vocabulary."""
        return self.base_size + len(self.tokens)

    def expand(self, ids: Iterable[int]) -> list[int]:
        """Return the base token ids that `ids` stand for.

        An extended tokenizer satisfies ``expand(extended(text)) == base(text)`` for every text.
        """
        expanded: list[int] = []
        for token in ids:
            if token < self.base_size:
                expanded.append(token)
            else:
                expanded.extend(self.tokens[token - self.base_size])
        return expanded

    def by_id(self) -> dict[int, tuple[int, ...]]:
        """Return the base token ids of every n-gram, by the n-gram's own id."""
        return dict(enumerate(self.tokens, self.base_size))

    def subset(self, numbers: Sequence[int]) -> NGrams:
        """Return only the n-grams of these numbers, renumbered in the given order."""
        return NGrams(self.base_size, tuple(self.tokens[number] for number in numbers))

    def to_tensor(self) -> Tensor:
        """Return the tokens as int32 of shape [n-grams, longest], padded with -1."""
        longest = max(map(len, self.tokens), default=0)
        rows = [[*ngram, *[PADDING] * (longest - len(ngram))] for ngram in self.tokens]
        return torch.tensor(rows, dtype=torch.int32).reshape(len(rows), longest)

    @classmethod
    def from_tensor(cls, base_size: int, tokens: Tensor) -> NGrams:
        """Undo `to_tensor`."""
        rows = tokens.tolist()
        return cls(base_size, tuple(tuple(t for t in row if t != PADDING) for row in rows))


class Matcher:
    """Finds n-grams among base tokens: the leftmost first, and of several the longest.

    Parameters
    ----------
    ngrams : NGrams
    """

    def __init__(self, ngrams: NGrams) -> None:
        self._root: dict[int, Any] = {}
        for token, ngram in ngrams.by_id().items():
            node = self._root
            for base in ngram:
                node = node.setdefault(base, {})
            node[END] = token

    def __call__(self, ids: Sequence[int]) -> list[tuple[int, int, int]]:
        """Return the start, the end and the new id of every token that base ids become."""
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
