"""Requests of many lengths, cut from held-out documents: the same text for every tokenizer."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from trimtab.config import ServingConfig
from trimtab.corpora import Document
from trimtab.errors import TrimtabError
from trimtab.evaluation.workload import LONGEST_TOKEN, Prompt
from trimtab.windows import split_at_byte, token_offsets


@dataclass(frozen=True)
class Length:
    """How long a request is; its prompt in one of two units.

    Attributes
    ----------
    new_tokens : int
        Tokens of the unmodified model's tokenizer that follow the prompt.
    prompt_bytes, prompt_tokens : int or None
    """

    new_tokens: int
    prompt_bytes: int | None = None
    prompt_tokens: int | None = None


def spread(config: ServingConfig, count: int, seed: int) -> list[Length]:
    """Return `count` lengths, spread evenly over the logarithms of their ranges, in random order.

    Whatever the count, the shortest and the longest are among them, but a single one is in the
    middle.
    """
    drawn = random.Random(seed)
    prompts, news = (
        log_spaced(bounds, count) for bounds in (config.prompt_bytes, config.new_tokens)
    )
    drawn.shuffle(prompts)
    drawn.shuffle(news)
    return [Length(new, prompt_bytes=size) for size, new in zip(prompts, news, strict=True)]


def log_spaced(bounds: Sequence[int], count: int) -> list[int]:
    """Return `count` numbers from the first bound to the second, evenly in their logarithms."""
    low, high = bounds
    shares = [place / (count - 1) for place in range(count)] if count > 1 else [0.5]
    return [round(low * math.exp(math.log(high / low) * share)) for share in shares]


def requests(
    documents: Sequence[Document],
    tokenizer: PreTrainedTokenizerBase,
    lengths: Sequence[Length],
    setting: str,
) -> list[Prompt]:
    """Return a stretch of a document for every length: a prompt, and the text that follows it.

    Each begins in another document than the one before, where the last stretch of that document
    ended; a document that has been used up begins again.

    Raises
    ------
    TrimtabError
        If no document is long enough for one of the lengths; naming `setting`, where they are from.
    """
    left = [document.text for document in documents]
    found: list[Prompt] = []
    for number, length in enumerate(lengths):
        places = [(number + step) % len(documents) for step in range(len(documents))]
        candidates = [(place, left[place]) for place in places]
        candidates += [(place, documents[place].text) for place in places]
        for place, text in candidates:
            parts = _cut(text, tokenizer, length)
            if parts is not None:
                found.append(Prompt(documents[place].name, *parts))
                left[place] = text[sum(map(len, parts)) :]
                break
        else:
            raise TrimtabError(
                f"{setting}: no held-out document is long enough for {_said(length)}; make it "
                "shorter, or use longer documents"
            )
    return found


def _cut(text: str, tokenizer: PreTrainedTokenizerBase, length: Length) -> tuple[str, str] | None:
    """Return the beginning of a text as a prompt and what follows; None where it is too short."""
    if length.prompt_bytes is not None:
        prompt, _ = split_at_byte(text, length.prompt_bytes)
        if len(prompt) == len(text):
            return None
    else:
        assert length.prompt_tokens is not None
        prompt = _tokens(text, tokenizer, length.prompt_tokens)
    following = _tokens(text[len(prompt) :], tokenizer, length.new_tokens)
    return (prompt, following) if prompt and following else None


def _tokens(text: str, tokenizer: PreTrainedTokenizerBase, count: int) -> str:
    """Return the first tokens of a text, and nothing where it has fewer."""
    text = text[: count * LONGEST_TOKEN]
    offsets = token_offsets(tokenizer, text)
    return text[: offsets[count - 1][1]] if len(offsets) >= count else ""


def _said(length: Length) -> str:
    if length.prompt_bytes is not None:
        return f"a prompt of {length.prompt_bytes} bytes and {length.new_tokens} tokens after it"
    return f"a prompt of {length.prompt_tokens} tokens and {length.new_tokens} after it"
