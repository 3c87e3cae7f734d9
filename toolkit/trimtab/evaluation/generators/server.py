"""What evaluation asks of whatever answers many requests together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from trimtab.evaluation.cache_memory import CacheMemory


@dataclass(frozen=True)
class Request:
    """A prompt, and what is to follow it.

    Attributes
    ----------
    prompt : list of int
        Token ids, at least one.
    new : int
        Tokens to generate: exactly as many, at least one.
    given : list of int
        The tokens to generate, whatever the model chooses; empty where it goes on by itself.
    """

    prompt: list[int]
    new: int
    given: list[int] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """Tokens of the prompt and of what follows it."""
        return len(self.prompt) + self.new

    @property
    def cached(self) -> int:
        """Tokens whose keys and values are in the cache at the end: the last is not read."""
        return self.tokens - 1

    def begun(self, new: int) -> Request:
        """Return the request for no more than the first `new` tokens."""
        return Request(self.prompt, min(self.new, new), self.given[:new])


@dataclass(frozen=True)
class Answer:
    """What requests that arrived together came to. Times are in seconds from their arrival.

    Attributes
    ----------
    seconds : float
        Until the last token of the last text.
    first : list of float
        By request, until its first token, or all tokens of its first step.
    tokens : list of list of int
        By request, the generated tokens.
    at_once : int
        The most texts in the cache at a time.
    preempted : int
        How often a text lost its place in the cache, and was run again later.
    memory : CacheMemory
        Of the KV cache, the most at a time; live are the tokens of texts, without their padding.
    step_seconds : dict of str to float
        What the decode steps' seconds went to, by kind of work, see `Engine.step_seconds`; empty
        where that is not known.
    """

    seconds: float
    first: list[float]
    tokens: list[list[int]]
    at_once: int
    preempted: int
    memory: CacheMemory
    step_seconds: dict[str, float] = field(default_factory=dict)


class Server(Protocol):
    """A model that answers requests which arrive together."""

    @property
    def capacity(self) -> int:
        """The most tokens of one request."""

    def warm_up(self, requests: Sequence[Request]) -> None:
        """Do once what would otherwise be done in the first answer."""

    def serve(self, requests: Sequence[Request]) -> Answer:
        """Answer requests greedily; no text ends early, nothing is kept for the next call."""


def require_all(requests: Sequence[Request], tokens: Sequence[Sequence[int]]) -> None:
    """Refuse answers that are not what was asked for.

    Raises
    ------
    RuntimeError
    """
    for request, found in zip(requests, tokens, strict=True):
        if len(found) != request.new or (request.given and list(found) != request.given):
            raise RuntimeError(
                f"{len(found)} tokens: expected {request.new}, those given where there are any"
            )
