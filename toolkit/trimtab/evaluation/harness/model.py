"""A contender as lm-eval wants a model."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM

from trimtab.corpus import encode
from trimtab.evaluation.contenders import Contender
from trimtab.generation.transformers import plainly_generating
from trimtab.models.facts import longest_text
from trimtab.progress import track


class ContenderLM(HFLM):
    """A contender for lm-eval, without a second model in memory.

    Likelihoods are those of the contender's generator: the context is read first and the answer
    after it, so that methods which treat a prompt otherwise score as they generate. Texts are
    generated one at a time, by transformers.

    Where the stack changes the vocabulary, context and answer are tokenized apart, each with its
    own tokenizer: a token may stand for the end of one and the beginning of the other.
    """

    def __init__(self, contender: Contender) -> None:
        super().__init__(
            pretrained=plainly_generating(contender.model, contender.output_tokenizer),
            tokenizer=copy.deepcopy(contender.output_tokenizer),
            max_length=longest_text(contender.model.config),
        )
        self.tokenizer: Any  # lm-eval has given it a padding token, if need be
        self._contender, self._prompt_tokenizer = contender, self.tokenizer
        if contender.tokenizer is not contender.output_tokenizer:
            self._prompt_tokenizer = copy.deepcopy(contender.tokenizer)
            self._prompt_tokenizer.add_special_tokens({"pad_token": self.tokenizer.pad_token})

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        if not self._contender.changes_vocabulary:
            pair: tuple[list[int], list[int]] = super()._encode_pair(context, continuation)
            return pair
        kept = context.rstrip()  # lm-eval has spaces belong to what follows them
        with self._reading_a_prompt():
            ids: list[int] = self.tok_encode(kept)
        return ids, encode(self.tokenizer, context[len(kept) :] + continuation)

    def tok_batch_encode(self, *arguments: Any, **options: Any) -> Any:
        """Return the tokens of prompts, to be continued."""
        with self._reading_a_prompt():
            return super().tok_batch_encode(*arguments, **options)

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[Any, list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        name = f"Answers: {self._contender.name}"
        tracked = track(requests, name, len(requests))
        return [self._likelihood(context, answer) for _, context, answer in tracked]

    def _likelihood(self, context: list[int], answer: list[int]) -> tuple[float, bool]:
        """Return the log-likelihood of an answer, in nats, and whether it is the greedy one."""
        room = max(self.max_length + 1 - len(answer), 1)  # the last token is never read
        logits = self._contender.generator.logits(context[-room:], answer)
        target = logits.new_tensor(answer, dtype=torch.int64)[:, None]
        log_probs = logits.float().log_softmax(-1)
        greedy = log_probs.argmax(-1, keepdim=True)
        return float(log_probs.gather(-1, target).double().sum()), bool((greedy == target).all())

    @contextmanager
    def _reading_a_prompt(self) -> Iterator[None]:
        own, self.tokenizer = self.tokenizer, self._prompt_tokenizer
        try:
            yield
        finally:
            self.tokenizer = own
