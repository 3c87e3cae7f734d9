"""Text as the selection of n-grams sees it, and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from trimtab.adaptivocab.tokenizer.extender import Expression
from trimtab.corpus import Document

Admissible = Callable[[Sequence[int], bool], bool]

LEAST = 2  # an n-gram that occurs once in the calibration text says nothing about any other


@dataclass(frozen=True)
class Stream:
    """One document in base tokens.

    Parameters
    ----------
    tokens : list of int
        Base token ids, without special tokens.
    words : list of int
        For each token, which pre-token it belongs to; ascending.
    """

    tokens: list[int]
    words: list[int]


@dataclass(frozen=True)
class Mined:
    """N-grams in the order they were chosen.

    Attributes
    ----------
    pieces : list of tuple of int
        Base token ids of each n-gram.
    saved : list of int
        Tokens of the calibration text that each saved when it was chosen.
    tokens : int
        Base tokens the text had.
    """

    pieces: list[tuple[int, ...]]
    saved: list[int]
    tokens: int


def streams(documents: Iterable[Document], expression: Expression, tokens: int) -> Iterator[Stream]:
    """Yield documents in base tokens until there are `tokens` of them.

    A document's order says nothing about its text, see `Corpus`: the first ones are a sample.
    """
    return first(tokens, (Stream(*expression.segment(one.text)) for one in documents))


def first(tokens: int, streams: Iterable[Stream]) -> Iterator[Stream]:
    """Yield streams until there are `tokens` tokens of them, and cut the last."""
    for stream in streams:
        yield Stream(stream.tokens[:tokens], stream.words[:tokens])
        tokens -= len(stream.tokens)
        if tokens <= 0:
            return
