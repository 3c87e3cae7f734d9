"""The drafter: it proposes the likely continuation of a text, by n-gram tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trimtab.adaptivocab.drafting.counting import Context, Guess, count_guesses, longest_guess
from trimtab.adaptivocab.ngrams import PADDING, NGrams

THRESHOLD = 0.2
LONGEST = 8
CONTEXT = 4


@dataclass(frozen=True)
class NGramDrafter:
    """Proposes the token that most often followed a context, and so on; a `Drafter`.

    Parameters
    ----------
    guesses : mapping
        For the last tokens of a text, oldest first, the next one and its probability. A longer
        context is there only where its guess is more probable than that of its own end.
    context : int
        The most tokens of a context.
    threshold : float
        The least probability that a draft is right up to and including a token of it.
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
        texts: Iterable[Sequence[int]],
        threshold: float = THRESHOLD,
        context: int = CONTEXT,
        longest: int = LONGEST,
    ) -> NGramDrafter:
        """Count what follows every context in texts of token ids, see `count_guesses`."""
        threshold = float(np.float32(threshold))
        return cls(count_guesses(ngrams, texts, threshold, context), context, threshold, longest)

    def propose(self, ids: Sequence[int]) -> list[int]:
        """Return the likely next tokens after `ids`, often none."""
        text = tuple(ids[-self.context :])
        draft: list[int] = []
        accepted = 1.0
        while len(draft) < self.longest:
            guess = longest_guess(self.guesses, text)
            if guess is None or accepted * guess[1] < self.threshold:
                break
            token, probability = guess
            accepted *= probability
            draft.append(token)
            text = (*text, token)[-self.context :]
        return draft

    def steps(self, text: Sequence[int]) -> int:
        """Return the forward passes that generate the tokens of `text` from nothing.

        One pass yields the tokens of the draft that agree with the text, and the one after them.
        """
        steps = position = 0
        while position < len(text):
            draft = self.propose(text[max(position - self.context, 0) : position])
            ahead = text[position : position + len(draft)]
            for token, real in zip(draft, ahead, strict=False):
                if token != real:
                    break
                position += 1
            position += 1
            steps += 1
        return steps

    def to_tensors(self) -> dict[str, Tensor]:
        """Return int32 and float32 tensors from which `from_tensors` makes the same drafter."""
        rows = [[PADDING] * (self.context - len(one)) + list(one) for one in self.guesses]
        guesses = list(self.guesses.values())
        return {
            "contexts": torch.tensor(rows, dtype=torch.int32).reshape(len(rows), self.context),
            "tokens": torch.tensor([token for token, _ in guesses], dtype=torch.int32),
            "probabilities": torch.tensor([p for _, p in guesses], dtype=torch.float32),
            "threshold": torch.tensor([self.threshold], dtype=torch.float32),
            "longest": torch.tensor([self.longest], dtype=torch.int32),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Any]) -> NGramDrafter:
        """Undo `to_tensors`."""
        contexts = tensors["contexts"].tolist()
        guesses = zip(tensors["tokens"].tolist(), tensors["probabilities"].tolist(), strict=True)
        return cls(
            {
                tuple(token for token in row if token != PADDING): guess
                for row, guess in zip(contexts, guesses, strict=True)
            },
            tensors["contexts"].shape[1],
            tensors["threshold"].item(),
            tensors["longest"].item(),
        )
