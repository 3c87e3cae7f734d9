"""The drafter: it proposes the likely continuation of a text, by what followed its contexts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.adaptivocab.drafting.counting import ContextCounts
from trimtab.adaptivocab.drafting.guess import Guess, next_guess
from trimtab.adaptivocab.drafting.rates import HitRates
from trimtab.adaptivocab.drafting.running import RunningCounts

CONTEXT = 6
LEAST = 0.05  # probability that a draft is right up to and including a token of it
LEARNED = 256  # tokens of a prompt that guesses are tested on; all of them are counted


@dataclass(frozen=True)
class ContextDrafter:
    """Proposes what followed the last tokens in the calibration text or in this one; a `Drafter`.

    Parameters
    ----------
    counts : ContextCounts
        Of the calibration text.
    context : int
        The most tokens of a context.
    """

    counts: ContextCounts
    context: int = CONTEXT

    @classmethod
    def count(cls, texts: Iterable[Sequence[int]], context: int = CONTEXT) -> ContextDrafter:
        """Count what follows every context in texts of token ids."""
        return cls(ContextCounts.of(texts, context), context)

    def start(self, ids: Sequence[int]) -> TextDrafts:
        """Return the drafts of the text that begins with `ids`."""
        return TextDrafts(self, ids)

    def steps(self, text: Sequence[int], least: float = 0.4) -> int:
        """Return the forward passes that generate the tokens of `text` from nothing.

        One pass yields the tokens of the draft that agree with the text, and the one after them.
        A draft goes on while it is right with a probability of at least `least`.
        """
        drafts = self.start(())
        steps = position = 0
        while position < len(text):
            accepted, chance = 0, 1.0
            for token, probability in drafts.propose(len(text) - position - 1):
                chance *= probability
                if chance < least or token != text[position + accepted]:
                    break
                accepted += 1
            drafts.accept(text[position : position + accepted + 1])
            position += accepted + 1
            steps += 1
        return steps

    def to_tensors(self) -> dict[str, Tensor]:
        """Return int32 tensors from which `from_tensors` makes the same drafter."""
        return self.counts.to_tensors() | {
            "context": torch.tensor([self.context], dtype=torch.int32)
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> ContextDrafter:
        """Undo `to_tensors`."""
        counts = {name: tensor for name, tensor in tensors.items() if name != "context"}
        return cls(ContextCounts.from_tensors(counts), int(tensors["context"]))


class TextDrafts:
    """The drafts of one text; a `DraftSession`.

    What is proposed depends on the text alone, and not on what was drafted before.

    Parameters
    ----------
    drafter : ContextDrafter
    ids : sequence of int
        The beginning of the text.
    """

    def __init__(self, drafter: ContextDrafter, ids: Sequence[int]) -> None:
        self._counts, self._context = drafter.counts, drafter.context
        self._running, self._rates = RunningCounts(drafter.context), HitRates()
        tested = max(len(ids) - LEARNED, 0)
        for token in ids[:tested]:
            self._running.add(token)
        self._next = self._guess(self._running.recent)
        self.accept(ids[tested:])

    def accept(self, tokens: Sequence[int]) -> None:
        """Take in the next tokens of the text."""
        for token in tokens:
            if self._next is not None:
                self._rates.learn(self._next, self._next.token == token)
            self._running.add(token)
            self._next = self._guess(self._running.recent)

    def propose(self, limit: int) -> list[tuple[int, float]]:
        """Return likely next tokens, and how probable each is after those before it."""
        draft: list[tuple[int, float]] = []
        recent, guess, chance = self._running.recent, self._next, 1.0
        while guess is not None and len(draft) < limit:
            probability = self._rates.rate(guess)
            chance *= probability
            if chance < LEAST:
                break
            draft.append((guess.token, probability))
            recent = (*recent, guess.token)[-self._context :]
            guess = self._guess(recent)
        return draft

    def _guess(self, recent: tuple[int, ...]) -> Guess | None:
        return next_guess(self._counts, self._running, recent)
