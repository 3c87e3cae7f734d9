"""Requests of ragged lengths that arrive together."""

from __future__ import annotations

import random
from collections.abc import Sequence

from texts import python_docs
from transformers import PreTrainedTokenizerBase

from trimtab.corpus import Split, encode
from trimtab.evaluation.generators.server import Request
from trimtab.evaluation.requests import Length, log_spaced
from trimtab.evaluation.requests import requests as stretches

PROMPT, NEW = (32, 384), (16, 96)  # the fewest and the most tokens


def requests(tokenizer: PreTrainedTokenizerBase, count: int, seed: int) -> list[Request]:
    """Return requests with stretches of held-out documents for prompts; what follows is left open.

    Their lengths are spread evenly over the logarithms of `PROMPT` and `NEW`.
    """
    drawn = random.Random(seed)
    prompts, news = (log_spaced(bounds, count) for bounds in (PROMPT, NEW))
    drawn.shuffle(prompts)
    drawn.shuffle(news)
    return held_out(tokenizer, prompts, news, "PROMPT, NEW")


def held_out(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[int], news: Sequence[int], setting: str
) -> list[Request]:
    """Return requests with so many tokens of held-out documents, and so many to generate.

    Raises
    ------
    TrimtabError
        If no document is long enough; naming `setting`, where the lengths are from.
    """
    lengths = [Length(new, prompt_tokens=size) for size, new in zip(prompts, news, strict=True)]
    found = stretches(python_docs().documents(Split.test), tokenizer, lengths, setting)
    return [
        Request(encode(tokenizer, one.text)[:size], new)
        for one, size, new in zip(found, prompts, news, strict=True)
    ]


def new_tokens(given: Sequence[Request]) -> int:
    """Return how many tokens were asked for."""
    return sum(request.new for request in given)
