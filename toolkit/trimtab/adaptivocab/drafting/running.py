"""What follows the contexts of the text that is being generated, prompt included."""

from __future__ import annotations

from itertools import islice

CONTEXTS = 2**16  # of one text; beyond, the half that was seen first is forgotten


class Followers:
    """The tokens that followed one context.

    Attributes
    ----------
    token : int
        The most frequent one, the latest of several.
    times, total : int
        How often it followed, and how often any token did.
    """

    __slots__ = ("_counts", "times", "token", "total")

    def __init__(self, token: int) -> None:
        self.token, self.times, self.total = token, 1, 1
        self._counts: dict[int, int] | None = None  # once there are two of them

    def add(self, token: int) -> None:
        self.total += 1
        if self._counts is None:
            if token == self.token:
                self.times += 1
                return
            self._counts = {self.token: self.times}
        times = self._counts[token] = self._counts.get(token, 0) + 1
        if times >= self.times:
            self.token, self.times = token, times


class RunningCounts:
    """Counts a text token by token.

    Parameters
    ----------
    context : int
        The most tokens of a context.

    Attributes
    ----------
    recent : tuple of int
        The last `context` tokens.
    """

    def __init__(self, context: int) -> None:
        self.recent: tuple[int, ...] = ()
        self._context = context
        self._followers: dict[tuple[int, ...], Followers] = {}

    def add(self, token: int) -> None:
        """Take in the next token of the text."""
        recent, followers = self.recent, self._followers
        for start in range(len(recent)):
            context = recent[start:]
            if (found := followers.get(context)) is None:
                followers[context] = Followers(token)
            else:
                found.add(token)
        self.recent = (*recent, token)[-self._context :]
        if len(followers) > CONTEXTS:
            for old in list(islice(followers, len(followers) // 2)):
                del followers[old]

    def after(self, context: tuple[int, ...]) -> Followers | None:
        """Return what followed a context of up to `context` tokens; None if nothing did."""
        return self._followers.get(context)
