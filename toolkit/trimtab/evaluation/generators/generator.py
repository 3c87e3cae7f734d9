"""What evaluation asks of whatever generates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerBase

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


class ForcedContinuation(LogitsProcessor):
    """Let only the next token of a given continuation through.

    After its end any token may come: a draft that reaches that far is cut off by what generates.

    Parameters
    ----------
    prompt_tokens : int
    continuation : sequence of int
        Token ids.
    """

    def __init__(self, prompt_tokens: int, continuation: Sequence[int]) -> None:
        self._prompt_tokens = prompt_tokens
        self._continuation = continuation

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        position = input_ids.shape[1] - self._prompt_tokens
        if position >= len(self._continuation):
            return scores
        token = self._continuation[position]
        forced = torch.full_like(scores, -torch.inf)
        forced[:, token] = 0
        return forced


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """Return the tokens of a prompt, special ones included."""
    ids: list[int] = tokenizer(prompt.text)["input_ids"]
    return ids
