"""Stretches of text in base tokens and in merged tokens side by side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from toolkit.adaptivocab.ngrams import NGrams
from toolkit.corpus import Document, encode


@dataclass(frozen=True)
class Passage:
    """One stretch of text, tokenized both ways.

    Parameters
    ----------
    base : Tensor
        Base token ids, int64 of shape [base tokens].
    merged : Tensor
        Ids of the extended vocabulary, int64 of shape [merged tokens].
    starts, ends : Tensor
        For each merged token, the base tokens it stands for: ``base[start:end]``; int64 of shape
        [merged tokens].
    size : int
        Bytes of the text.
    """

    base: Tensor
    merged: Tensor
    starts: Tensor
    ends: Tensor
    size: int


def passages(
    documents: Iterable[Document],
    tokenizer: PreTrainedTokenizerBase,
    ngrams: NGrams,
    tokens: int,
    window: int,
) -> list[Passage]:
    """Cut documents into passages of about `window` base tokens, spread evenly over the text.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
        The extended one.
    tokens : int
        Base tokens of all passages together; fewer where the text is shorter.
    """
    found = [
        part
        for document in documents
        for part in _cut(encode(tokenizer, document.text), ngrams, window)
    ]
    count = min(len(found), max(tokens // window, 1))
    return [
        _passage(found[index * len(found) // count], tokenizer, ngrams) for index in range(count)
    ]


def _cut(merged: list[int], ngrams: NGrams, window: int) -> Iterator[list[int]]:
    """Yield stretches of `window` base tokens, and the rest if it is at least half as long."""
    part: list[int] = []
    length = 0
    for token in merged:
        part.append(token)
        length += len(ngrams.expand([token]))
        if length >= window:
            yield part
            part, length = [], 0
    if length >= window // 2:
        yield part


def _passage(merged: list[int], tokenizer: PreTrainedTokenizerBase, ngrams: NGrams) -> Passage:
    text: Any = tokenizer.decode(merged, skip_special_tokens=False)
    lengths = torch.tensor([len(ngrams.expand([token])) for token in merged])
    ends = lengths.cumsum(0)
    return Passage(
        base=torch.tensor(ngrams.expand(merged)),
        merged=torch.tensor(merged),
        starts=ends - lengths,
        ends=ends,
        size=len(text.encode()),
    )
