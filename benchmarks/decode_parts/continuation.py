"""What a contender makes of a prompt, and why one may be absent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self


class MissingError(Exception):
    """A contender cannot run here; the message says why, and what to do."""


@dataclass(frozen=True)
class Continuation:
    """One timed generation.

    Parameters
    ----------
    milliseconds : float
        From the first new token to the last.
    tokens, steps : int
        Tokens after the first, and the forward passes that yielded them.
    text : str
        Of all new tokens.
    work : dict of str to float
        What the seconds of the steps went to, by kind of work; empty where that is not known.
    """

    milliseconds: float
    tokens: int
    steps: int
    text: str
    work: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, times: Sequence[float], text: str, work: Mapping[str, float] | None = None) -> Self:
        """Return it from the moments, in seconds, when each token was there."""
        milliseconds = 1e3 * (times[-1] - times[0])
        return cls(milliseconds, len(times) - 1, len(set(times)) - 1, text, dict(work or {}))

    @property
    def size(self) -> float:
        """Bytes of the text of the tokens after the first: their share of the whole text."""
        return len(self.text.encode()) * self.tokens / (self.tokens + 1)

    def sample(self) -> dict[str, Any]:
        """Return what is kept of it, JSON values only."""
        return {
            "ms": round(self.milliseconds, 4), "tokens": self.tokens, "steps": self.steps,
            "bytes": round(self.size, 2),
        }  # fmt: skip
