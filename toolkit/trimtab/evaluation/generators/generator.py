"""What evaluation asks of whatever generates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from transformers import LogitsProcessor

from trimtab.evaluation.timing import Timing
from trimtab.evaluation.workload import Prompt


class Generator(Protocol):
    """A model with its tokenizers, ready to score text and to generate it, one text at a time."""

    def logits(self, context: Sequence[int], text: Sequence[int]) -> Tensor:
        """Return what the model expects at every token of a text that follows a context.

        Parameters
        ----------
        context, text : sequence of int
            Token ids, at least one each.

        Returns
        -------
        Tensor
            Floating point, of shape [tokens of the text, vocabulary].
        """

    def greedy(self, prompt: Prompt, new_tokens: int) -> str:
        """Return how the model itself continues a prompt, in exactly `new_tokens` tokens."""

    def teacher_forced(self, prompt: Prompt) -> Timing:
        """Time the generation of the text that really follows the prompt.

        Every model and every tokenizer then produces the same bytes, so that times compare: freely
        generated texts differ in length and in words, and their times with them.
        """


class ForcedContinuations(LogitsProcessor):
    """Have each row of a batch go on with its given continuation.

    A row that is at its end repeats its last token until the longest is, too. Scores are changed in
    place: they are a copy of the logits that `generate` makes.

    Parameters
    ----------
    prompt_tokens : int
        Of every row, padding included.
    continuations : sequence of sequence of int
        Token ids by row, at least one each.
    device : torch.device
    """

    def __init__(
        self, prompt_tokens: int, continuations: Sequence[Sequence[int]], device: torch.device
    ) -> None:
        self._prompt_tokens = prompt_tokens
        self._longest = max(map(len, continuations))
        rows = [[*row, *[row[-1]] * (self._longest - len(row))] for row in continuations]
        self._tokens = torch.tensor(rows, device=device)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        position = input_ids.shape[1] - self._prompt_tokens
        if position < self._longest:
            scores.scatter_(1, self._tokens[:, position, None], torch.inf)
        return scores
