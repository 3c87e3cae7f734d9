"""The n-grams of base tokens that became tokens: what their ids mean in the base vocabulary."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

NOTHING = -1  # fills the rows of `NGrams.to_tensor` behind an n-gram's last piece


@dataclass(frozen=True)
class NGrams:
    """New tokens, each of which stands for two or more base tokens in a row.

    Parameters
    ----------
    base_size : int
        Id of the first n-gram: no less than the base tokenizer's size and the rows of the base
        model's embedding, so that every old id keeps its meaning.
    pieces : tuple of tuple of int
        The base token ids of every n-gram; n-gram number i has the id ``base_size + i``.
    """

    base_size: int
    pieces: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.pieces)

    @property
    def size(self) -> int:
        """Rows of the extended vocabulary."""
        return self.base_size + len(self.pieces)

    def expand(self, ids: Iterable[int]) -> list[int]:
        """Return the base token ids that `ids` stand for.

        What an extended tokenizer must satisfy for every text: ``expand(extended(text)) ==
        base(text)``.
        """
        expanded: list[int] = []
        for token in ids:
            if token < self.base_size:
                expanded.append(token)
            else:
                expanded.extend(self.pieces[token - self.base_size])
        return expanded

    def by_id(self) -> dict[int, tuple[int, ...]]:
        """Return the base token ids of every n-gram by its own."""
        return dict(enumerate(self.pieces, self.base_size))

    def subset(self, numbers: Sequence[int]) -> NGrams:
        """Return the n-grams of these numbers alone, renumbered in the given order."""
        return NGrams(self.base_size, tuple(self.pieces[number] for number in numbers))

    def to_tensor(self) -> Tensor:
        """Return the pieces as int32 of shape [n-grams, longest], padded with -1."""
        longest = max(map(len, self.pieces), default=0)
        rows = [[*pieces, *[NOTHING] * (longest - len(pieces))] for pieces in self.pieces]
        return torch.tensor(rows, dtype=torch.int32).reshape(len(rows), longest)

    @classmethod
    def from_tensor(cls, base_size: int, pieces: Tensor) -> NGrams:
        """Undo `to_tensor`."""
        rows = pieces.tolist()
        return cls(base_size, tuple(tuple(p for p in row if p != NOTHING) for row in rows))
