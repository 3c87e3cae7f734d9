"""Stretches of text in base tokens and in merged tokens side by side."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from trimtab.adaptivocab.ngrams import NGrams
from trimtab.corpus import encode


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
