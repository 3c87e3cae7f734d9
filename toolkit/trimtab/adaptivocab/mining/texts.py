"""Text as n-grams are mined from it, and what mining returns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from trimtab.adaptivocab.tokenizer.extender import TokenizerExtender
from trimtab.corpus import Document

# Whether base tokens, within one pre-token (False) or across several (True), may be an n-gram.
Admissible = Callable[[Sequence[int], bool], bool]

LEAST = 2  # occurrences; an n-gram that occurs only once is no evidence that it will occur again


@dataclass(frozen=True)
class TokenizedText:
    """One document in base tokens.

    Parameters
    ----------
    tokens : list of int
        Base token ids, without special tokens.
    pre_tokens : list of int
        For each token, the number of the pre-token that it belongs to; ascending.
    """

    tokens: list[int]
    pre_tokens: list[int]


@dataclass(frozen=True)
class Mined:
    """N-grams in the order in which they were chosen.

    Attributes
    ----------
    ngrams : list of tuple of int
        Base token ids of each n-gram.
    saved : list of int
        Tokens of the calibration text that each saved when it was chosen.
    tokens : int
        Base tokens of the text.
    """

    ngrams: list[tuple[int, ...]]
    saved: list[int]
    tokens: int


def tokenize(
    documents: Iterable[Document], extender: TokenizerExtender, tokens: int
) -> Iterator[TokenizedText]:
    """Yield documents in base tokens until there are `tokens` of them.

    The order of a corpus' documents is independent of what they say, see `Corpus`, so the first
    ones are a fair sample.
    """
    return up_to(tokens, (TokenizedText(*extender.segment(one.text)) for one in documents))


def up_to(tokens: int, texts: Iterable[TokenizedText]) -> Iterator[TokenizedText]:
    """Yield texts until they have `tokens` tokens together; the last is cut to fit."""
    for text in texts:
        yield TokenizedText(text.tokens[:tokens], text.pre_tokens[:tokens])
        tokens -= len(text.tokens)
        if tokens <= 0:
            return
