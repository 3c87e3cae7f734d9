"""What is recorded of a timed generation."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Timing:
    """One timed generation. Times are in seconds.

    Attributes
    ----------
    first : float
        From the start until the first step's tokens were there.
    gaps : list of float
        Between one step and the next.
    step_tokens : list of int
        Tokens that each step yielded: one, unless a draft was accepted.
    total : float
        From the start until the whole text was there.
    prompt_tokens, new_tokens : int
        Tokens read, and tokens generated.
    prompt_size, size : int
        The bytes of their text.
    live_bytes, committed_bytes, reserved_bytes : int
        Of the KV cache at the end: what its tokens take, the storage held for them, and the address
        space reserved.
    measured_bytes : int or None
        The pages of a virtual cache as the operating system or the driver counts them; None of
        other caches.
    huge_page_bytes : int or None
        How many of them lie in huge pages of the host; None of other caches.
    step_seconds : dict of str to float
        What its decode steps took by kind of work; empty where that is not known.
    """

    first: float
    gaps: list[float]
    step_tokens: list[int]
    total: float
    prompt_tokens: int
    new_tokens: int
    prompt_size: int
    size: int
    live_bytes: int
    committed_bytes: int
    reserved_bytes: int
    measured_bytes: int | None = None
    huge_page_bytes: int | None = None
    step_seconds: dict[str, float] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """Return the timing as JSON values, without what was not measured."""
        return {name: value for name, value in asdict(self).items() if value not in (None, {})}

    @property
    def steps(self) -> int:
        """Forward passes, the prompt's included."""
        return len(self.step_tokens)

    @property
    def token_times(self) -> list[float]:
        """Seconds per token after the first step: a step's gap divided by its tokens."""
        later = zip(self.gaps, self.step_tokens[1:], strict=True)
        return [gap / tokens for gap, tokens in later for _ in range(tokens)]
