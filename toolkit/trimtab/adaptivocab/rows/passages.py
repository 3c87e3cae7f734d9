"""Stretches of text in base tokens and in merged tokens side by side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from trimtab.adaptivocab.ngrams import NGrams
from trimtab.corpus import Document, encode


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
        Each merged token stands for the base tokens ``base[start:end]``; int64 of shape
        [merged tokens].
    size : int
        Bytes of the text.
    """

    base: Tensor
    merged: Tensor
    starts: Tensor
    ends: Tensor
    size: int

    @classmethod
    def of(cls, text: str, tokenizer: PreTrainedTokenizerBase, ngrams: NGrams) -> Passage:
        """Tokenize `text` with the extended tokenizer, and so with the base one."""
        merged = encode(tokenizer, text)
        lengths = torch.tensor([len(ngrams.expand([token])) for token in merged], dtype=torch.int64)
        ends = lengths.cumsum(0)
        return cls(
            base=torch.tensor(ngrams.expand(merged), dtype=torch.int64),
            merged=torch.tensor(merged, dtype=torch.int64),
            starts=ends - lengths,
            ends=ends,
            size=len(text.encode("utf-8", "surrogatepass")),
        )


def with_start(ids: Tensor, start: int | None) -> Tensor:
    """Return token ids, of shape [..., tokens], after the token `start` if there is one."""
    return ids if start is None else functional.pad(ids, (1, 0), value=start)


def cut(
    documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase, tokens: int, window: int
) -> list[str]:
    """Cut documents into texts of `window` tokens, and return some, spread evenly over them all.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
        The base tokenizer, a fast one.
    tokens : int
        Base tokens of all texts returned; fewer where the documents are shorter.
    """
    found = [part for document in documents for part in _cut(document.text, tokenizer, window)]
    count = min(len(found), max(tokens // window, 1))
    return [found[index * len(found) // count] for index in range(count)]


def _cut(text: str, tokenizer: PreTrainedTokenizerBase, window: int) -> Iterator[str]:
    """Yield texts of `window` tokens, and what is left if it is at least half as long."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    offsets = encoded["offset_mapping"]
    for start in range(0, len(offsets), window):
        part = offsets[start : start + window]
        if len(part) >= window // 2:
            yield text[part[0][0] : part[-1][1]]
