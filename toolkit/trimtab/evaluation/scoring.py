"""How well a model predicts held-out text: bits per byte, and how far two models differ."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from trimtab.corpus import encode, with_start, without_start
from trimtab.errors import TrimtabError
from trimtab.evaluation.workload import Window


@dataclass
class Score:
    """What a model makes of one window.

    Attributes
    ----------
    nats : float
        Negative log-likelihood of the scored text.
    tokens : int
        Tokens the scored text has.
    size : int
        Bytes the scored text has.
    context_tokens : int
        Tokens of the context that were read, without the start token.
    log_probs : Tensor or None
        Log-probabilities at every scored token, float32 of shape [tokens, vocabulary].
    """

    nats: float
    tokens: int
    size: int
    context_tokens: int
    log_probs: Tensor | None

    @property
    def bits(self) -> float:
        return self.nats / math.log(2)


# Given the tokens of a context and of the text that follows: logits of shape [tokens, vocabulary].
Predict = Callable[[list[int], list[int]], Tensor]


def score(
    predict: Predict,
    tokenizer: PreTrainedTokenizerBase,
    window: Window,
    output_tokenizer: PreTrainedTokenizerBase | None = None,
    newest: int | None = None,
) -> Score:
    """Return the likelihood of a window's text, given its context.

    Context and text are tokenized apart, so that exactly the text's bytes are scored whatever
    the tokenizer; a start token before them makes the first byte predictable too.

    Parameters
    ----------
    predict : callable
        See `trimtab.evaluation.generators.Generator.logits`.
    tokenizer : PreTrainedTokenizerBase
        Of the context.
    output_tokenizer : PreTrainedTokenizerBase, optional
        Of the text; the context's where None.
    newest : int, optional
        How many tokens of the context are read: the last ones. All where None.

    Raises
    ------
    TrimtabError
        If neither a start token nor the context gives any token before the text.
    """
    output_tokenizer = output_tokenizer or tokenizer
    context, text, size = tokens_of(window, tokenizer, output_tokenizer)
    read = without_start(tokenizer, context)
    if newest is not None:
        context = read = read[max(len(read) - newest, 0) :]
    context = with_start(tokenizer, context)
    if not context:
        raise TrimtabError(
            f"{window.document}: nothing comes before the first token that is scored, as the "
            f"tokenizer has no start token and makes no token of the context {window.context!r:.60}"
            ": raise quality.context_bytes"
        )
    log_probs = predict(context, text).float().log_softmax(-1)
    target = torch.tensor(text, device=log_probs.device)
    nats = -log_probs.gather(-1, target[:, None]).double().sum()
    return Score(float(nats), len(text), size, len(read), log_probs)


def tokens_of(
    window: Window, tokenizer: PreTrainedTokenizerBase, output_tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], list[int], int]:
    """Return the tokens of a window's context and of its text, and the bytes of the text.

    A start token that a text without context begins with is not of it: one comes before every text.
    """
    context, text = encode(tokenizer, window.context), encode(output_tokenizer, window.text)
    if window.context:
        return context, text, window.scored_bytes
    rest = without_start(output_tokenizer, text)
    given = output_tokenizer.decode(text[: len(text) - len(rest)])
    return context, rest, window.scored_bytes - len(str(given).encode())


def divergence(baseline: Score, candidate: Score) -> float:
    """Return KL(baseline || candidate) summed over the window's tokens, in nats."""
    assert baseline.log_probs is not None
    assert candidate.log_probs is not None
    terms = torch.nn.functional.kl_div(
        candidate.log_probs, baseline.log_probs, reduction="none", log_target=True
    )
    return float(terms.sum(-1).double().sum())
