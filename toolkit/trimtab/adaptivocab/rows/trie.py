"""The prefixes of n-grams: which token a text that began one turns out to be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from trimtab.adaptivocab.ngrams import NGrams

Node = tuple[int, ...]


class Trie:
    """All prefixes of all n-grams.

    Once a text has produced the first base token of some n-grams, the base tokens that follow
    decide which token it was: one of the n-grams, or the first token by itself. These outcomes are
    the *classes*: 0 to G - 1 for the n-grams, then one for each distinct first token.

    Attributes
    ----------
    firsts : Tensor
        The first tokens in ascending order, int64 of shape [firsts].
    group : Tensor
        For each class, the number of its first token, int64 of shape [n-grams + firsts].
    children : dict of tuple to list of tuple
        The prefixes that extend a prefix by one token.
    owner : dict of tuple to int
        For each prefix, the class of the longest token that it begins with.
    """

    def __init__(self, ngrams: NGrams) -> None:
        firsts = sorted({ngram[0] for ngram in ngrams.tokens})
        numbers = {token: number for number, token in enumerate(firsts)}
        groups = [numbers[ngram[0]] for ngram in ngrams.tokens] + list(range(len(firsts)))
        self.firsts = torch.tensor(firsts, dtype=torch.int64)
        self.group = torch.tensor(groups, dtype=torch.int64)
        classes = {ngram: number for number, ngram in enumerate(ngrams.tokens)}
        self.owner: dict[Node, int] = {
            (token,): len(ngrams) + number for token, number in numbers.items()
        }
        self.children: dict[Node, list[Node]] = {}
        for ngram in sorted(ngrams.tokens):
            for end in range(2, len(ngram) + 1):
                node, parent = ngram[:end], ngram[: end - 1]
                if node not in self.owner:
                    self.owner[node] = classes.get(node, self.owner[parent])
                    self.children.setdefault(parent, []).append(node)

    def counts(self, texts: Iterable[Sequence[int]]) -> dict[Node, int]:
        """Return how often each prefix occurs in texts of base tokens."""
        found = dict.fromkeys(self.owner, 0)
        for text in texts:
            for start, token in enumerate(text):
                node: Node = (token,)
                end = start + 1
                while node in found:
                    found[node] += 1
                    if end == len(text):
                        break
                    node = (*node, text[end])
                    end += 1
        return found

    def conditionals(self, counts: dict[Node, int]) -> dict[Node, float]:
        """Return, for each prefix of two tokens or more, how often the last followed the others."""
        return {
            node: counts[node] / max(counts[node[:-1]], 1) for node in self.owner if len(node) > 1
        }

    def split(self, first: Node, conditionals: Mapping[Node, float]) -> dict[int, float]:
        """Return how a first token's probability is divided among its classes; it adds up to 1.

        Parameters
        ----------
        conditionals : mapping of tuple to float
            Probability of each prefix's last token, given the tokens before.
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
        """Return `split` of every first token, float32 of shape [n-grams + firsts]."""
        shares = torch.zeros(len(self.group), dtype=torch.float32)
        for token in self.firsts.tolist():
            for number, share in self.split((token,), conditionals).items():
                shares[number] = share
        return shares
