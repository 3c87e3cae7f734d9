"""How often guesses are right, learned while a text goes on."""

from __future__ import annotations

from bisect import bisect_right

from trimtab.adaptivocab.drafting.guess import Guess

EDGES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
CAUTION = 0.8  # how often a guess is right before anything is known, by what it estimates
WEIGHT = 4  # guesses that count as much as that
DECAY = 0.98  # of what older guesses count, with each later one of their kind


class HitRates:
    """The share of guesses that came true, by what they estimate and who agrees on them.

    Every token of a text tests the guess before it, whether or not it was drafted. So a text that
    becomes unpredictable is noticed without drafts, and so is one that becomes predictable again.
    """

    def __init__(self) -> None:
        bounds = (0.0, *EDGES, 1.0)
        start = [CAUTION * (bounds[n] + bounds[n + 1]) / 2 for n in range(len(EDGES) + 1)]
        self._hits = [[WEIGHT * rate for rate in start] for _ in range(4)]
        self._trials = [[float(WEIGHT)] * len(start) for _ in range(4)]

    def rate(self, guess: Guess) -> float:
        """Return the probability that a guess is right."""
        kind, place = guess.agreement, bisect_right(EDGES, guess.estimate)
        return self._hits[kind][place] / self._trials[kind][place]

    def learn(self, guess: Guess, hit: bool) -> None:
        """Take in whether a guess was right."""
        kind, place = guess.agreement, bisect_right(EDGES, guess.estimate)
        self._hits[kind][place] = self._hits[kind][place] * DECAY + hit
        self._trials[kind][place] = self._trials[kind][place] * DECAY + 1
