"""One prompt on its way to a completion."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from torch import Tensor

from trimtab.generation.sampling import Sampler
from trimtab.generation.stopping import TextStream


class Finish(StrEnum):
    """Why a text ended: a stop token, a stop string, or the most tokens there may be."""

    stop = "stop"
    stop_string = "stop_string"
    length = "length"


@dataclass(frozen=True)
class Completion:
    """What was generated behind a prompt.

    Attributes
    ----------
    tokens : list of int
        With the stop token, where there was one, and those a stop string came out of.
    text : str
        Without special tokens, the stop token, and what begins with a stop string.
    finish : Finish
    prompt_tokens : int
        Tokens of the prompt.
    times : list of float
        When each token was chosen, in seconds of `time.perf_counter`; the same for the tokens of
        one forward pass. Of a sequence that was run again, when it was first chosen.
    steps : int
        Forward passes that the tokens came out of: fewer than tokens where drafts were accepted.
    preemptions : int
        How often the sequence was put back and run again from its prompt.
    """

    tokens: list[int]
    text: str
    finish: Finish
    prompt_tokens: int
    times: list[float]
    steps: int
    preemptions: int


class Request:
    """A prompt and the tokens behind it so far.

    Parameters
    ----------
    index : int
    prompt : list of int
        At least one token.
    limit : int
        The most tokens to generate.
    stop_tokens : frozenset of int
    stream : TextStream
    make_sampler : callable
        Returns a sampler that has chosen nothing yet.

    Attributes
    ----------
    ids : list of int
        The prompt and the tokens behind it, of this run.
    sampler : Sampler
        Of this run.
    finish : Finish or None
    replayed, diverged : int
        Tokens that a repeated run chose once more, and those of them that would have been others.
    """

    def __init__(
        self,
        index: int,
        prompt: list[int],
        limit: int,
        stop_tokens: frozenset[int],
        stream: TextStream,
        make_sampler: Callable[[], Sampler],
    ) -> None:
        self.index, self.prompt = index, prompt
        self._limit, self._stop_tokens, self._stream = limit, stop_tokens, stream
        self._make_sampler = make_sampler
        self._tokens: list[int] = []
        self._times: list[float] = []
        self._preemptions = 0
        self.finish: Finish | None = None
        self.replayed = self.diverged = 0
        self._begin()

    @property
    def left(self) -> int:
        """Tokens that may still be generated."""
        return len(self.prompt) + self._limit - len(self.ids)

    def choose(self, logits: Tensor) -> int:
        """Return the next token for `logits`, of shape [1, vocabulary]."""
        return self.sampler(self.ids, logits)

    def append(self, token: int, time: float) -> str | None:
        """Take the next token, and return the text that became final with it.

        In a repeated run the tokens that were handed out before stand: they come out again, unless
        rounding differed because a draft was verified in one of the runs only. None is returned
        for them.
        """
        place = len(self.ids) - len(self.prompt)
        if place < len(self._tokens):
            self.replayed += 1
            self.diverged += token != self._tokens[place]
            self.ids.append(self._tokens[place])
            return None
        self.ids.append(token)
        self._tokens.append(token)
        self._times.append(time)
        if token in self._stop_tokens:
            self.finish = Finish.stop
            return self._stream.close()
        final = self._stream.push(token)
        if not self._stream.stopped and not self.left:
            self.finish = Finish.length
            final += self._stream.close()
        if self._stream.stopped:
            self.finish = Finish.stop_string
        return final

    def put_back(self) -> None:
        """Forget this run; the next one begins with the prompt."""
        self._preemptions += 1
        self._begin()

    def completion(self) -> Completion:
        """Return what came of it, once it is finished."""
        assert self.finish is not None
        return Completion(
            tokens=self._tokens,
            text=self._stream.text,
            finish=self.finish,
            prompt_tokens=len(self.prompt),
            times=self._times,
            steps=len(set(self._times)),
            preemptions=self._preemptions,
        )

    def _begin(self) -> None:
        self.ids = list(self.prompt)
        self.sampler = self._make_sampler()
