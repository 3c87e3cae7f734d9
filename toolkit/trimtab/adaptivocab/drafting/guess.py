"""The likeliest next token by both counts, and an estimate of its probability."""

from __future__ import annotations

from typing import NamedTuple

from trimtab.adaptivocab.drafting.counting import ROOT, ContextCounts
from trimtab.adaptivocab.drafting.running import RunningCounts

BACKOFF = 2  # occurrences that the shorter contexts count as much as


class Guess(NamedTuple):
    """A token that may come next.

    Attributes
    ----------
    token : int
    estimate : float
        Of its probability, by the counts.
    agreement : int
        Whether it is what the longest known context says: 1 in the calibration text, 2 in the
        running text, 3 in both, 0 in neither.
    """

    token: int
    estimate: float
    agreement: int


def next_guess(
    counts: ContextCounts, running: RunningCounts, recent: tuple[int, ...]
) -> Guess | None:
    """Return the guess for what follows the tokens `recent`; None if they are not known at all.

    From the shortest context to the longest, and of one length from the calibration text to the
    running text, a token that followed n of the N times takes over where n / (N + `BACKOFF`) is
    more than what is left of the estimate p of the token before, p * `BACKOFF` / (N + `BACKOFF`);
    where it is the same token, its estimate is the sum of the two.
    """
    token, estimate = -1, 0.0
    calibrated = seen = -1  # what either text says
    node = ROOT
    for start in range(len(recent) - 1, -1, -1):
        if node >= ROOT and (node := counts.child(node, recent[start])) >= ROOT:
            calibrated, times, total = counts.tokens[node], counts.times[node], counts.totals[node]
            token, estimate = _weigh(token, estimate, calibrated, times, total)
        if (found := running.after(recent[start:])) is not None:
            seen = found.token
            token, estimate = _weigh(token, estimate, seen, found.times, found.total)
        elif node < ROOT:
            break
    if token < 0:
        return None
    return Guess(token, estimate, (calibrated == token) + 2 * (seen == token))


def _weigh(token: int, estimate: float, said: int, times: int, total: int) -> tuple[int, float]:
    fresh, left = times / (total + BACKOFF), estimate * BACKOFF / (total + BACKOFF)
    if said == token:
        return token, fresh + left
    return (said, fresh) if fresh > left else (token, left)
