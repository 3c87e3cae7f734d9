"""Text cut into windows: at bytes, the same for every tokenizer, and at tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from trimtab.corpora import Document
from trimtab.corpus import encode, start_token, without_start
from trimtab.errors import TrimtabError

T = TypeVar("T")

LONGEST_CHARACTER = 4  # bytes in UTF-8


def byte_windows(text: str, size: int) -> Iterator[str]:
    """Yield consecutive windows of `size` bytes, cut before a character that straddles the end.

    What is left at the end counts where it is at least half a window.

    Parameters
    ----------
    size : int
        At least `LONGEST_CHARACTER`.
    """
    if size < LONGEST_CHARACTER:
        raise ValueError(f"size={size}: a character takes up to {LONGEST_CHARACTER} bytes")
    encoded, start = text.encode(), 0
    while start < len(encoded):
        end = min(start + size, len(encoded))
        while end < len(encoded) and encoded[end] & 0b1100_0000 == 0b1000_0000:
            end -= 1
        if end < len(encoded) or end - start >= size // 2:
            yield encoded[start:end].decode()
        start = end


def split_at_byte(text: str, size: int) -> tuple[str, str]:
    """Return the first `size` bytes, without a character that straddles the end, and the rest."""
    head = text.encode()[:size].decode(errors="ignore")
    return head, text[len(head) :]


def token_windows(
    documents: Iterable[Document],
    tokenizer: PreTrainedTokenizerBase,
    count: int,
    length: int,
    *,
    fewer: bool = False,
) -> Tensor:
    """Return `count` windows of `length` tokens, spread evenly over the documents' text.

    The documents, without a start token that they begin with, are joined with the end-of-text token
    and cut without padding or overlap. Every window begins with the tokenizer's start token, if it
    has one, as the texts do that are measured: models make something very much their own of the
    first position.

    Parameters
    ----------
    fewer : bool
        Return as many as there are where the text is too short.

    Returns
    -------
    Tensor
        int64 of shape [count, length].

    Raises
    ------
    TrimtabError
        If the text is too short.
    """
    separator = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    joined: list[int] = []
    for document in documents:
        joined += without_start(tokenizer, encode(tokenizer, document.text)) + separator
    start = start_token(tokenizer)
    opening = [] if start is None else [start]
    size = length - len(opening)
    available = len(joined) // size
    count = min(count, available) if fewer else count
    if available < count:
        raise TrimtabError(
            f"{count} windows of {length} tokens are asked for and the text holds {available} of "
            f"them, in {len(joined)} tokens: lower tokens or window, or use a larger corpus"
        )
    starts = [index * size for index in evenly(range(available), count)]
    windows = [opening + joined[start : start + size] for start in starts]
    return torch.tensor(windows, dtype=torch.int64).reshape(count, length)


def text_windows(
    documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase, tokens: int, length: int
) -> list[str]:
    """Return texts of `length` tokens, spread evenly over the documents.

    A text by itself may have other tokens than within its document, and more: it is shortened until
    it has no more than `length`. What is left at the end of a document counts where it is at least
    half a window. A start token that a document begins with is in none.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
        A fast one.
    tokens : int
        Tokens of all texts together; fewer where the documents are shorter.
    """
    found = [text for one in documents for text in _text_windows(one.text, tokenizer, length)]
    return evenly(found, min(len(found), max(tokens // length, 1)))


def token_offsets(tokenizer: PreTrainedTokenizerBase, text: str) -> list[tuple[int, int]]:
    """Return where each token of `text` starts and ends, in characters; of a fast tokenizer."""
    return _placed(tokenizer, text)[1]


def evenly(items: Sequence[T], count: int) -> list[T]:
    """Return `count` of the items, spread evenly over all; at most as many as there are."""
    return [items[index * len(items) // count] for index in range(count)]


def _text_windows(text: str, tokenizer: PreTrainedTokenizerBase, length: int) -> Iterator[str]:
    tokens, offsets = _placed(tokenizer, text)
    first = len(tokens) - len(without_start(tokenizer, tokens))
    for start in range(first, len(offsets), length):
        part = offsets[start : start + length]
        if len(part) >= length // 2:
            texts = (text[part[0][0] : end] for _, end in reversed(part))
            yield from islice((one for one in texts if len(encode(tokenizer, one)) <= length), 1)


def _placed(
    tokenizer: PreTrainedTokenizerBase, text: str
) -> tuple[list[int], list[tuple[int, int]]]:
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return encoded["input_ids"], encoded["offset_mapping"]
