from __future__ import annotations

import math

import pytest
import torch

from trimtab.adaptivocab.ngrams import NGrams
from trimtab.adaptivocab.rows.combination import combined, weights
from trimtab.adaptivocab.settings import Rows

NGRAMS = NGrams(20, ((3, 7), (5, 5, 9), (11, 0, 2, 4), (0, 1)))
FIXED = [Rows.exponential, Rows.mean, Rows.first, Rows.last]


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("rows", FIXED)
def test_weights_add_up_to_1_over_the_tokens_alone(rows, head):
    shares = weights(NGRAMS, rows, head=head)
    torch.testing.assert_close(shares.sum(1), torch.ones(4, dtype=torch.float64))
    for share, ngram in zip(shares, NGRAMS.tokens, strict=True):
        assert (share >= 0).all()
        assert not share[len(ngram) :].any()


@pytest.mark.parametrize("head", [False, True])
def test_exponential_weights_are_the_papers(head):
    """Over n tokens exp(2 i) / sum_j exp(2 j), and exp(-2 i) / sum_j exp(-2 j) for the head."""
    sign = -1 if head else 1
    for share, ngram in zip(
        weights(NGRAMS, Rows.exponential, head=head), NGRAMS.tokens, strict=True
    ):
        scores = [math.exp(sign * 2 * i) for i in range(1, len(ngram) + 1)]
        expected = [score / sum(scores) for score in scores]
        assert share[: len(ngram)].tolist() == pytest.approx(expected, rel=1e-12)


def test_the_input_favours_the_last_token_and_the_head_the_first():
    last = weights(NGRAMS, Rows.exponential, head=False)[2]
    first = weights(NGRAMS, Rows.exponential, head=True)[2]
    assert last.argmax() == 3
    assert first.argmax() == 0
    torch.testing.assert_close(last.flip(0), first)


@pytest.mark.parametrize("head", [False, True])
def test_mean_first_and_last_are_what_they_say(head):
    for number, ngram in enumerate(NGRAMS.tokens):
        count = len(ngram)
        kinds = {
            Rows.mean: [1 / count] * count,
            Rows.first: [1.0] + [0.0] * (count - 1),
            Rows.last: [0.0] * (count - 1) + [1.0],
        }
        for rows, expected in kinds.items():
            found = weights(NGRAMS, rows, head=head)[number, :count].tolist()
            assert found == pytest.approx(expected)


@pytest.mark.parametrize("rows", [Rows.fitted, Rows.distilled, Rows.recovered])
def test_fitted_rows_have_no_weights(rows):
    with pytest.raises(ValueError, match=f"{rows} rows are no fixed combination"):
        weights(NGRAMS, rows, head=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_combined_rows_are_weighted_sums_in_float32(dtype):
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(12, 6, generator=generator).to(dtype)
    shares = torch.rand(4, 4, generator=generator, dtype=torch.float64)
    shares[NGRAMS.to_tensor() < 0] = 0
    found = combined(matrix, NGRAMS, shares)
    assert found.dtype == torch.float32
    for row, share, ngram in zip(found, shares, NGRAMS.tokens, strict=True):
        expected = torch.zeros(6, dtype=torch.float64)
        for weight, token in zip(share, ngram, strict=False):
            expected += weight * matrix[token].double()
        torch.testing.assert_close(row.double(), expected, atol=1e-6, rtol=1e-6)


def test_the_last_tokens_rows_are_the_matrixs():
    matrix = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))
    found = combined(matrix, NGRAMS, weights(NGRAMS, Rows.last, head=False))
    assert torch.equal(found, matrix[[7, 9, 4, 1]])
