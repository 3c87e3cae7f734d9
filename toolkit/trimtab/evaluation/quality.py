"""How well a model predicts held-out text: bits per byte, and how far two models differ."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trimtab.corpus import encode, start_token
from trimtab.evaluation.text import Window
from trimtab.models.adapter import module_device


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


# What is expected at every token of a text behind a context: logits of shape [tokens, vocabulary].
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
        Given the tokens of context and text: `predicting` a model, or an engine's `logits`.
    tokenizer : PreTrainedTokenizerBase
        Of the context.
    output_tokenizer : PreTrainedTokenizerBase, optional
        Of the text; the context's where None.
    newest : int, optional
        How many tokens of the context are read, the last ones; all where None.
    """
    context = encode(tokenizer, window.context)
    context = context[len(context) - newest :] if newest is not None else context
    read = len(context)
    context = behind_start(tokenizer, context)
    text = encode(output_tokenizer or tokenizer, window.text)
    if not context:  # nothing to predict the first token from: it serves as the context
        context, text = text[:1], text[1:]
    log_probs = predict(context, text).float().log_softmax(-1)
    target = torch.tensor(text, device=log_probs.device)
    nats = -log_probs.gather(-1, target[:, None]).double().sum()
    return Score(float(nats), len(text), window.scored_bytes, read, log_probs)


def predicting(model: PreTrainedModel) -> Predict:
    """Return what predicts with transformers' own cache.

    The context is read first, as a prompt would be, and the text on top of its cache.
    """

    @torch.inference_mode()
    def predict(context: list[int], text: list[int]) -> Tensor:
        device = module_device(model.get_input_embeddings())
        prompt, target = (torch.tensor([part], device=device) for part in (context, text))
        first = model(input_ids=prompt, use_cache=True, logits_to_keep=1)
        then = model(input_ids=target[:, :-1], past_key_values=first.past_key_values)
        return torch.cat([first.logits[0], then.logits[0]])

    return predict


def behind_start(tokenizer: PreTrainedTokenizerBase, tokens: list[int]) -> list[int]:
    """Return tokens behind the one that texts start with, if the tokenizer has one."""
    start = start_token(tokenizer)
    return tokens if start is None else [start, *tokens]


def divergence(baseline: Score, candidate: Score) -> float:
    """Return KL(baseline || candidate) summed over the window's tokens, in nats."""
    assert baseline.log_probs is not None
    assert candidate.log_probs is not None
    terms = torch.nn.functional.kl_div(
        candidate.log_probs, baseline.log_probs, reduction="none", log_target=True
    )
    return float(terms.sum(-1).double().sum())


def common_prefix(first: str, second: str) -> int:
    """Return the number of characters before the first that differs."""
    for index, (left, right) in enumerate(zip(first, second, strict=False)):
        if left != right:
            return index
    return min(len(first), len(second))
