"""What follows the contexts of the calibration text, as a trie in flat arrays."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

CONTEXTS = 2**18  # of one length; of longer text, the rarest contexts are left out
ROOT = 0
NAMES = ("first", "oldest", "tokens", "times", "totals")

Integers = npt.NDArray[np.int64]


class ContextCounts:
    """Which token most often follows each context of a text, and how often.

    Contexts are the nodes of a trie, read from the newest token back: a child is its parent with
    one token before it. Nodes are numbered by length, then by parent, then by that token; the
    root is the empty context, of which nothing is said.

    Parameters
    ----------
    first : array of int
        Of shape [nodes + 1]: the children of a node are those from `first[node]` up to
        `first[node + 1]`.
    oldest : array of int
        Of shape [nodes], as the others: the oldest token of each context.
    tokens : array of int
        The most frequent token after it, the smallest of several.
    times : array of int
        How often this token follows.
    totals : array of int
        How often any token does.
    """

    def __init__(self, **arrays: npt.NDArray[np.integer]) -> None:
        self._arrays = {name: arrays[name].astype(np.int32, copy=False) for name in NAMES}
        # Single items of a memoryview are read several times faster than those of an array.
        self._first, self._oldest, self.tokens, self.times, self.totals = (
            self._arrays[name].data for name in NAMES
        )

    @classmethod
    def of(cls, texts: Iterable[Sequence[int]], context: int) -> ContextCounts:
        """Count texts of token ids, each by itself, with contexts of up to `context` tokens."""
        texts = [text for text in texts if len(text)]
        lengths = np.array([len(text) for text in texts], dtype=np.int64)
        ids = np.concatenate([np.array(text, dtype=np.int64) for text in texts] or [lengths])
        place = np.arange(len(ids)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        least = 1 + len(ids) // CONTEXTS
        nodes = np.full(len(ids), ROOT, dtype=np.int64)  # the context before each token
        levels = [[np.array([value]) for value in (-1, -1, -1, 0, 0)]]  # the root
        count = 1
        for length in range(1, context + 1):
            known = np.flatnonzero((nodes >= ROOT) & (place >= length))
            columns, numbers = _count(nodes[known], ids[known - length], ids[known], least)
            nodes[:] = -1
            nodes[known] = np.where(numbers < 0, -1, numbers + count)
            count += len(columns[0])
            levels.append(columns)
        parents, *others = (np.concatenate(column) for column in zip(*levels, strict=True))
        # The root is nobody's child, so it is not counted among them.
        first = 1 + np.searchsorted(parents[1:], np.arange(count + 1))
        return cls(first=first, **dict(zip(NAMES[1:], others, strict=True)))

    def child(self, node: int, token: int) -> int:
        """Return the context with `token` before that of `node`; -1 if it is not known."""
        end = self._first[node + 1]
        found = bisect_left(self._oldest, token, self._first[node], end)
        return found if found < end and self._oldest[found] == token else -1

    def __len__(self) -> int:
        return len(self.tokens) - 1

    def to_tensors(self) -> dict[str, Tensor]:
        """Return int32 tensors from which `from_tensors` makes the same counts."""
        return {name: torch.from_numpy(array) for name, array in self._arrays.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> ContextCounts:
        """Undo `to_tensors`."""
        return cls(**{name: tensor.numpy() for name, tensor in tensors.items()})


def _count(
    parents: Integers, oldest: Integers, followers: Integers, least: int
) -> tuple[list[Integers], Integers]:
    """Count contexts of one length, given by a parent and an oldest token, and what follows them.

    Returns
    -------
    list of array
        Of those that occur at least `least` times: parent, oldest token, most frequent follower,
        how often it follows, and how often any token does.
    array
        The place of each one given among them; -1 for those that are rarer.
    """
    keys, numbers, totals = np.unique(
        parents << 32 | oldest, return_inverse=True, return_counts=True
    )
    pairs, times = np.unique(numbers << 32 | followers, return_counts=True)
    contexts, tokens = pairs >> 32, pairs & 0xFFFFFFFF
    order = np.lexsort((tokens, -times, contexts))
    best = order[np.searchsorted(contexts, np.arange(len(keys)))]
    kept = totals >= least
    columns = keys >> 32, keys & 0xFFFFFFFF, tokens[best], times[best], totals
    places = np.where(kept, np.cumsum(kept) - 1, -1)
    return [column[kept] for column in columns], places[numbers]
