"""Requests of ragged lengths that arrive together, and how one batch of them was answered."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from texts import python_docs
from transformers import PreTrainedTokenizerBase

from trimtab.corpus import Split, encode
from trimtab.errors import TrimtabError

PROMPT, NEW = (32, 384), (16, 96)  # the fewest and the most tokens


@dataclass(frozen=True)
class Request:
    """A prompt, and how many tokens are to follow it."""

    prompt: list[int]
    new: int


@dataclass(frozen=True)
class Answer:
    """What a batch of requests came to.

    Parameters
    ----------
    seconds : float
        From their arrival to the last token of the last text.
    first : list of float
        By request, the seconds from its arrival to its first token.
    tokens : list of list of int
        By request.
    """

    seconds: float
    first: list[float]
    tokens: list[list[int]]

    def sample(self) -> dict[str, Any]:
        """Return what is kept of it, JSON values only."""
        first = [round(one, 5) for one in self.first]
        return {"seconds": round(self.seconds, 5), "first_token_s": first}


def requests(tokenizer: PreTrainedTokenizerBase, count: int, seed: int) -> list[Request]:
    """Return requests with the beginnings of held-out passages, drawn at random.

    Their lengths are spread evenly over the logarithms of `PROMPT` and `NEW`.

    Raises
    ------
    TrimtabError
        If there are too few passages.
    """
    length = PROMPT[1]
    passages = [
        ids[start : start + length]
        for ids in (encode(tokenizer, one.text) for one in python_docs().documents(Split.test))
        for start in range(0, len(ids) - length + 1, length)
    ]
    if len(passages) < count:
        raise TrimtabError(
            f"--requests {count}: only {len(passages)} held-out passages are {length} tokens long"
        )
    drawn = random.Random(seed)
    found = drawn.sample(passages, count)
    prompts, news = (_spread(*bounds, count) for bounds in (PROMPT, NEW))
    drawn.shuffle(prompts)
    drawn.shuffle(news)
    pairs = zip(found, prompts, news, strict=True)
    return [Request(ids[:length], new) for ids, length, new in pairs]


def _spread(low: int, high: int, count: int) -> list[int]:
    step = math.log(high / low) / max(count - 1, 1)
    return [round(low * math.exp(step * place)) for place in range(count)]


def new_tokens(given: Sequence[Request]) -> int:
    """Return how many tokens were asked for."""
    return sum(request.new for request in given)
