"""Drafts: the likely continuation of a text by pieces of n-grams, counted on other text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trimtab.adaptivocab.ngrams import NOTHING, NGrams

THRESHOLD = 0.2
LONGEST = 8
CONTEXT = 4
CONTEXTS = 2**18  # of one length; on longer text, the rarest are not looked at

Context = tuple[int, ...]
Guess = tuple[int, float]


@dataclass(frozen=True)
class Drafts:
    """What follows a context: one token, and how likely it is.

    Parameters
    ----------
    guesses : mapping
        For the last tokens of a text, oldest first, the next one and its probability. A longer
        context is there only where it makes the text's next token more certain than its own end.
    context : int
        The most tokens a context has.
    threshold : float
        The least probability that the draft is right up to a token of it.
    longest : int
        The most tokens of a draft.
    """

    guesses: Mapping[Context, Guess]
    context: int
    threshold: float
    longest: int

    @classmethod
    def count(
        cls,
        ngrams: NGrams,
        streams: Iterable[Sequence[int]],
        threshold: float = THRESHOLD,
        context: int = CONTEXT,
        longest: int = LONGEST,
    ) -> Drafts:
        """Count what follows every context in `streams`.

        Only a piece of an n-gram is ever guessed: one that continues an n-gram whose first pieces
        end the context, or the first piece of one behind a whole n-gram. The probability is
        n / (N + 1) for a token that followed n of a context's N occurrences: as if it had occurred
        once more and gone on differently, so that rare contexts promise less. Of the contexts that
        end a text, the one whose guess is most probable is believed.

        Parameters
        ----------
        streams : iterable of sequence of int
            Base token ids of texts, each by itself.
        threshold, context, longest
            See the class.
        """
        texts = [tuple(stream) for stream in streams]
        least = 1 + sum(map(len, texts)) // CONTEXTS
        threshold = float(np.float32(threshold))
        pieces = _Pieces(ngrams)
        guesses: dict[Context, Guess] = {}
        frequent: set[Context] = {()}
        for length in range(1, context + 1):
            found, followed = _count(texts, length, frequent)
            frequent = {one for one, count in found.items() if count >= least}
            best: dict[Context, tuple[int, int]] = {}
            for (one, token), count in followed.items():
                better = (count, -token) > best.get(one, (0, 0))
                if better and one in frequent and pieces.follow(one, token):
                    best[one] = count, -token
            for one, (count, negative) in sorted(best.items()):
                probability = float(np.float32(count / (found[one] + 1)))
                known = _guess(guesses, one[1:])
                if probability >= threshold and (known is None or probability > known[1]):
                    guesses[one] = -negative, probability
        return cls(guesses, context, threshold, longest)

    def propose(self, ids: Sequence[int]) -> list[int]:
        """Return the likely continuation of the base tokens `ids`, often empty."""
        text = tuple(ids[-self.context :])
        draft: list[int] = []
        accepted = 1.0
        while len(draft) < self.longest:
            guess = _guess(self.guesses, text)
            if guess is None or accepted * guess[1] < self.threshold:
                break
            token, probability = guess
            accepted *= probability
            draft.append(token)
            text = (*text, token)[-self.context :]
        return draft

    def steps(self, stream: Sequence[int]) -> int:
        """Return the forward passes that generate the base tokens `stream` from nothing.

        One pass yields the tokens of the draft that agree with the stream, and the one behind.
        """
        steps = position = 0
        while position < len(stream):
            draft = self.propose(stream[max(position - self.context, 0) : position])
            ahead = stream[position : position + len(draft)]
            for token, real in zip(draft, ahead, strict=False):
                if token != real:
                    break
                position += 1
            position += 1
            steps += 1
        return steps

    def to_tensors(self) -> dict[str, Tensor]:
        """Return int32 and float32 tensors that `from_tensors` makes the same drafts of."""
        rows = [[NOTHING] * (self.context - len(one)) + list(one) for one in self.guesses]
        guesses = list(self.guesses.values())
        return {
            "contexts": torch.tensor(rows, dtype=torch.int32).reshape(len(rows), self.context),
            "tokens": torch.tensor([token for token, _ in guesses], dtype=torch.int32),
            "probabilities": torch.tensor([p for _, p in guesses], dtype=torch.float32),
            "threshold": torch.tensor([self.threshold], dtype=torch.float32),
            "longest": torch.tensor([self.longest], dtype=torch.int32),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Any]) -> Drafts:
        """Undo `to_tensors`."""
        contexts = tensors["contexts"].tolist()
        guesses = zip(tensors["tokens"].tolist(), tensors["probabilities"].tolist(), strict=True)
        return cls(
            {
                tuple(token for token in row if token != NOTHING): guess
                for row, guess in zip(contexts, guesses, strict=True)
            },
            tensors["contexts"].shape[1],
            tensors["threshold"].item(),
            tensors["longest"].item(),
        )


class _Pieces:
    """Which token may follow which: only a piece of an n-gram."""

    def __init__(self, ngrams: NGrams) -> None:
        self.whole = set(ngrams.pieces)
        self.begun = {one[:end] for one in ngrams.pieces for end in range(1, len(one) + 1)}

    def follow(self, context: Context, token: int) -> bool:
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


def _guess(guesses: Mapping[Context, Guess], text: Context) -> Guess | None:
    """Return the guess behind the longest end of `text` that has one."""
    for start in range(len(text)):
        guess = guesses.get(text[start:])
        if guess is not None:
            return guess
    return None
