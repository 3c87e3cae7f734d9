"""One prompt on its way to a completion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from torch import Tensor

from trimtab.generation.sampling import Sampler
from trimtab.generation.stopping import Detokenizer


class Finish(StrEnum):
    """Why a text ended: a stop token, a stop string, `max_new_tokens`, or no room for more."""

    stop = "stop"
    stop_string = "stop_string"
    length = "length"
    capacity = "capacity"


def allowed(limit: int, room: int | None) -> tuple[int, Finish]:
    """Return the most tokens that may be generated, and why a text of so many ends."""
    if room is not None and room < limit:
        return room, Finish.capacity
    return limit, Finish.length


@dataclass(frozen=True)
class Completion:
    """What was generated for a prompt.

    Attributes
    ----------
    tokens : list of int
        Including the stop token, or the tokens of the stop string, if there was one.
    text : str
        Without special tokens, the stop token, and everything from a stop string on.
    finish : Finish
    prompt_tokens : int
        Tokens of the prompt.
    times : list of float
        When each token was chosen, in seconds of `time.perf_counter`. Tokens of one forward pass
        share a time. After a preemption the times of the first choice stand.
    steps : int
        Forward passes that yielded the tokens: fewer than tokens if drafts were accepted.
    preemptions : int
        How often the sequence was preempted and recomputed from its prompt.
    """

    tokens: list[int]
    text: str
    finish: Finish
    prompt_tokens: int
    times: list[float]
    steps: int
    preemptions: int


class Request:
    """A prompt and its continuation so far.

    Each preemption starts a new run from the prompt.

    Parameters
    ----------
    index : int
    prompt : list of int
        At least one token.
    limit : int
        The most tokens to generate.
    stop_tokens : frozenset of int
    detokenizer : Detokenizer
    make_sampler : callable
        Returns a sampler that has chosen nothing yet.
    room : int, optional
        Tokens that there is room for after the prompt, where they may be fewer than `limit`.
    given : sequence of int
        Tokens that the text goes on with, whatever is chosen; what is chosen comes after them. None
        of them ends it.

    Attributes
    ----------
    ids : list of int
        The prompt and the tokens after it, in the current run.
    sampler : Sampler
        Of the current run.
    finish : Finish or None
    recomputed, diverged : int
        Tokens chosen a second time, and those among them that differed from the first choice.
    """

    def __init__(
        self,
        index: int,
        prompt: list[int],
        limit: int,
        stop_tokens: frozenset[int],
        detokenizer: Detokenizer,
        make_sampler: Callable[[], Sampler],
        room: int | None = None,
        given: Sequence[int] = (),
    ) -> None:
        self.index, self.prompt = index, prompt
        self._stop_tokens, self._detokenizer = stop_tokens, detokenizer
        self._limit, self._at_limit = allowed(limit, room)
        self._make_sampler, self._given = make_sampler, given
        self._tokens: list[int] = []
        self._times: list[float] = []
        self._preemptions = 0
        self.finish: Finish | None = None
        self.recomputed = self.diverged = 0
        self._begin()

    @property
    def left(self) -> int:
        """How many tokens may still be generated."""
        return len(self.prompt) + self._limit - len(self.ids)

    def draw(self, logits: Tensor) -> Tensor:
        """Return the next token for `logits`, of shape [1, vocabulary]; see `Sampler.draw`."""
        return self.sampler.draw(self.ids, logits)

    def follow(self, token: int) -> int:
        """Return the token that the text goes on with after `token` was chosen."""
        place = len(self.ids) - len(self.prompt)
        return self._given[place] if place < len(self._given) else token

    def append(self, token: int, time: float) -> str | None:
        """Take the next token, and return the text that it makes final.

        A token handed out before a preemption stands: it takes the place of `token`, and None is
        returned. The two are the same, unless a draft was verified in only one of the runs and its
        rounding made the difference.
        """
        place = len(self.ids) - len(self.prompt)
        if place < len(self._tokens):
            self.recomputed += 1
            self.diverged += token != self._tokens[place]
            self.ids.append(self._tokens[place])
            return None
        self.ids.append(token)
        self._tokens.append(token)
        self._times.append(time)
        if token in self._stop_tokens and place >= len(self._given):
            self.finish = Finish.stop
            return self._detokenizer.close()
        final = self._detokenizer.push(token)
        if not self._detokenizer.stopped and not self.left:
            self.finish = self._at_limit
            final += self._detokenizer.close()
        if self._detokenizer.stopped:
            self.finish = Finish.stop_string
        return final

    def put_off(self, time: float, later: float) -> None:
        """Have the last tokens, as far as they were chosen at `time`, be chosen later instead."""
        place = len(self._times)
        while place and self._times[place - 1] == time:
            place -= 1
            self._times[place] = later

    def preempt(self) -> None:
        """End the current run; the next one begins with the prompt."""
        self._preemptions += 1
        self._begin()

    def completion(self) -> Completion:
        """Return the result, once the request is finished."""
        assert self.finish is not None
        return Completion(
            tokens=self._tokens,
            text=self._detokenizer.text,
            finish=self.finish,
            prompt_tokens=len(self.prompt),
            times=self._times,
            steps=len(set(self._times)),
            preemptions=self._preemptions,
        )

    def _begin(self) -> None:
        self.ids = list(self.prompt)
        self.sampler = self._make_sampler()
