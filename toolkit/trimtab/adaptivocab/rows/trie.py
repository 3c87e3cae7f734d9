"""N-grams by their first pieces: which token a text that began one turns out to be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from trimtab.adaptivocab.ngrams import NGrams

Node = tuple[int, ...]


class Trie:
    """All prefixes of all n-grams.

    After a text has produced the first piece of n-grams, it is a matter of the next pieces which
    token it was: one of the n-grams, or the bare first piece. These outcomes are the *classes*:
    number 0 to G - 1 for the n-grams, then one for each distinct first piece.

    Attributes
    ----------
    firsts : Tensor
        The first pieces in ascending order, int64 of shape [firsts].
    group : Tensor
        For each class, the number of its first piece, int64 of shape [n-grams + firsts].
    children : dict of tuple to list of tuple
        What a prefix can go on as.
    owner : dict of tuple to int
        For each prefix, the class of the longest token that begins it.
    """

    def __init__(self, ngrams: NGrams) -> None:
        firsts = sorted({pieces[0] for pieces in ngrams.pieces})
        numbers = {token: number for number, token in enumerate(firsts)}
        groups = [numbers[pieces[0]] for pieces in ngrams.pieces] + list(range(len(firsts)))
        self.firsts = torch.tensor(firsts, dtype=torch.int64)
        self.group = torch.tensor(groups, dtype=torch.int64)
        tokens = {pieces: number for number, pieces in enumerate(ngrams.pieces)}
        self.owner: dict[Node, int] = {
            (token,): len(ngrams) + number for token, number in numbers.items()
        }
        self.children: dict[Node, list[Node]] = {}
        for pieces in sorted(ngrams.pieces):
            for end in range(2, len(pieces) + 1):
                node, parent = pieces[:end], pieces[: end - 1]
                if node not in self.owner:
                    self.owner[node] = tokens.get(node, self.owner[parent])
                    self.children.setdefault(parent, []).append(node)

    def counts(self, streams: Iterable[Sequence[int]]) -> dict[Node, int]:
        """Return how often each prefix occurs in streams of base tokens."""
        found = dict.fromkeys(self.owner, 0)
        for stream in streams:
            for start, token in enumerate(stream):
                node: Node = (token,)
                end = start + 1
                while node in found:
                    found[node] += 1
                    if end == len(stream):
                        break
                    node = (*node, stream[end])
                    end += 1
        return found

    def conditionals(self, counts: dict[Node, int]) -> dict[Node, float]:
        """Return, for each prefix of two pieces or more, how often its last piece followed."""
        return {
            node: counts[node] / max(counts[node[:-1]], 1) for node in self.owner if len(node) > 1
        }

    def split(self, first: Node, conditionals: Mapping[Node, float]) -> dict[int, float]:
        """Return the probability of every class of a first piece; they add up to 1.

        Parameters
        ----------
        conditionals : mapping of tuple to float
            Probability of each prefix's last piece, given the pieces before.
        """
        shares: dict[int, float] = {}
        open_: list[tuple[Node, float]] = [(first, 1.0)]
        while open_:
            node, probability = open_.pop()
            goes_on = [
                (child, probability * conditionals[child]) for child in self.children.get(node, [])
            ]
            ends = max(probability - sum(part for _, part in goes_on), 0.0)
            shares[self.owner[node]] = shares.get(self.owner[node], 0.0) + ends
            open_ += goes_on
        return shares

    def mean_shares(self, conditionals: Mapping[Node, float]) -> Tensor:
        """Return `split` of every first piece, float32 of shape [n-grams + firsts]."""
        shares = torch.zeros(len(self.group))
        for token in self.firsts.tolist():
            for number, share in self.split((token,), conditionals).items():
                shares[number] = share
        return shares
