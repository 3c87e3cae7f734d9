"""Rows of the embedding and of the head that combine the rows of an n-gram's tokens.

These are the baselines: AdaptiVocab's exponential weights (arXiv 2503.19693, section 3.3) and
simpler ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trimtab.adaptivocab.ngrams import PADDING, NGrams
from trimtab.adaptivocab.settings import Rows

DECAY = 2.0  # of the paper's weights, proportional to exp(2 i) for token i


def weights(ngrams: NGrams, rows: Rows, *, head: bool) -> Tensor:
    """Return the weight of every token's row in its n-gram's row.

    Parameters
    ----------
    rows : Rows
        `exponential`, `mean`, `first` or `last`.
    head : bool
        Whether for rows of the head, where `exponential` favours the first token, not the last.

    Returns
    -------
    Tensor
        float64 of shape [n-grams, longest]; every row adds up to 1.
    """
    tokens = ngrams.to_tensor()
    there = tokens != PADDING
    position = torch.arange(tokens.shape[1], dtype=torch.float64).expand(tokens.shape)
    if rows is Rows.mean:
        scores = torch.zeros_like(position)
    elif rows is Rows.exponential:
        scores = DECAY * (-position if head else position)
    elif rows in (Rows.first, Rows.last):
        chosen = 0 if rows is Rows.first else there.sum(1, keepdim=True) - 1
        scores = torch.zeros_like(position).masked_fill(position != chosen, -torch.inf)
    else:
        raise ValueError(f"{rows} rows are no fixed combination of their tokens' rows")
    return scores.masked_fill(~there, -torch.inf).softmax(-1, dtype=torch.float64)


def combined(matrix: Tensor, ngrams: NGrams, shares: Tensor) -> Tensor:
    """Return the weighted sums of the rows of the n-grams' tokens.

    Parameters
    ----------
    matrix : Tensor
        The base model's embedding or head, of shape [vocabulary, width].
    shares : Tensor
        From `weights`.

    Returns
    -------
    Tensor
        float32 of shape [n-grams, width], on the matrix's device.
    """
    tokens = ngrams.to_tensor().clamp_min(0).long().to(matrix.device)
    shares = shares.to(matrix.device, torch.float32)
    return torch.einsum("gk,gkd->gd", shares, matrix[tokens].float())
