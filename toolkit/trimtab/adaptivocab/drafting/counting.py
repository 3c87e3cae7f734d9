"""Which n-gram token follows a context, counted on text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from trimtab.adaptivocab.ngrams import NGrams

CONTEXTS = 2**18  # of one length; of longer text, the rarest contexts are left out

Context = tuple[int, ...]
Guess = tuple[int, float]


def count_guesses(
    ngrams: NGrams, texts: Iterable[Sequence[int]], threshold: float, context: int
) -> dict[Context, Guess]:
    """Return the guess of every context up to a length, see `NGramDrafter`.

    Only a token of an n-gram is ever guessed: one that continues an n-gram whose first tokens end
    the context, or the first token of one after a whole n-gram. The probability of a token that
    followed n of a context's N occurrences is n / (N + 1), as if the context had occurred once
    more and continued differently, so that rare contexts promise less. Of the contexts that end a
    text, the one whose guess is the most probable counts.

    Parameters
    ----------
    texts : iterable of sequence of int
        Token ids of texts, each by itself.
    threshold : float
        The least probability of a guess, exact in float32.
    context : int
        The most tokens of a context.
    """
    counted = [tuple(text) for text in texts]
    least = 1 + sum(map(len, counted)) // CONTEXTS
    continuations = _Continuations(ngrams)
    guesses: dict[Context, Guess] = {}
    frequent: set[Context] = {()}
    for length in range(1, context + 1):
        found, followed = _count(counted, length, frequent)
        frequent = {one for one, count in found.items() if count >= least}
        best: dict[Context, tuple[int, int]] = {}
        for (one, token), count in followed.items():
            better = (count, -token) > best.get(one, (0, 0))
            if better and one in frequent and continuations.allow(one, token):
                best[one] = count, -token
        for one, (count, negative) in sorted(best.items()):
            probability = float(np.float32(count / (found[one] + 1)))
            shorter = longest_guess(guesses, one[1:])
            if probability >= threshold and (shorter is None or probability > shorter[1]):
                guesses[one] = -negative, probability
    return guesses


def longest_guess(guesses: Mapping[Context, Guess], text: Context) -> Guess | None:
    """Return the guess for the longest end of `text` that has one."""
    for start in range(len(text)):
        guess = guesses.get(text[start:])
        if guess is not None:
            return guess
    return None


class _Continuations:
    """Which token may follow a context: only a token of an n-gram."""

    def __init__(self, ngrams: NGrams) -> None:
        self.whole = set(ngrams.tokens)
        self.begun = {ngram[:end] for ngram in ngrams.tokens for end in range(1, len(ngram) + 1)}

    def allow(self, context: Context, token: int) -> bool:
        ends = [context[start:] for start in range(len(context))]
        if any((*end, token) in self.begun for end in ends):
            return True
        return (token,) in self.begun and any(end in self.whole for end in ends)


def _count(
    texts: list[Context], length: int, frequent: set[Context]
) -> tuple[Counter[Context], Counter[tuple[Context, int]]]:
    """Count the contexts of `length` tokens whose end is frequent, and what follows each."""
    found: Counter[Context] = Counter()
    followed: Counter[tuple[Context, int]] = Counter()
    for text in texts:
        for position in range(length, len(text)):
            one = text[position - length : position]
            if one[1:] in frequent:
                found[one] += 1
                followed[one, text[position]] += 1
    return found, followed
