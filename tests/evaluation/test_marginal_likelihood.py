"""The likelihood of a text over all its tokenizations."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from tests.conftest import tiny
from tests.evaluation import vocabulary
from trimtab.adaptivocab.rows.extended import extended
from trimtab.evaluation.marginal_likelihood import marginal_likelihood_nats, tokenizations

CONTEXT = [1, 70, 80, 90]


def paths(text, ngram_tokens):
    """Return every sequence of tokens that stands for `text`, by the definition."""
    if not text:
        return [[]]
    found = [[text[0], *rest] for rest in paths(text[1:], ngram_tokens)]
    for token, expanded in ngram_tokens.items():
        if tuple(text[: len(expanded)]) == expanded:
            found += [[token, *rest] for rest in paths(text[len(expanded) :], ngram_tokens)]
    return found


def log_probs(model, path):
    """Return log-probabilities of all tokens at each place of a path, in one pass."""
    logits = model(torch.tensor([CONTEXT + path])).logits[0, len(CONTEXT) - 1 : -1]
    return logits.double().log_softmax(-1)


def nats(model, path):
    return -log_probs(model, path).gather(-1, torch.tensor(path)[:, None]).sum()


def drawn(model, path, every):
    """Return the log-probability of drawing a path by its tokens, each among those that fit."""
    total = torch.zeros((), dtype=torch.float64)
    for place, (row, token) in enumerate(zip(log_probs(model, path), path, strict=True)):
        fit = sorted({other[place] for other in every if other[:place] == path[:place]})
        total += row[fit].log_softmax(-1)[fit.index(token)]
    return total


def estimate(model, text, ngram_tokens, samples, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return marginal_likelihood_nats(model, CONTEXT, text, ngram_tokens, samples, generator)


@torch.inference_mode()
def test_paths_are_drawn_from_the_model_and_weighed_by_what_was_left_of_it():
    loaded, grams = tiny(), vocabulary.ngrams()
    ngram_tokens = grams.by_id()
    text = [*grams.tokens[0], *grams.tokens[3]]
    with extended(loaded.model, vocabulary.new_rows(loaded.model), output=True):
        model, every = loaded.model, paths(text, ngram_tokens)
        chances = [float(drawn(model, path, every).exp()) for path in every]
        assert len(every) >= 4
        assert sum(chances) == pytest.approx(1)
        weights = torch.tensor(
            [
                -nats(model, path) - torch.tensor(chance).log()
                for path, chance in zip(every, chances, strict=True)
            ]
        )
        counts = [0] * len(every)
        for seed in range(100):
            found = estimate(model, text, ngram_tokens, 1, seed)
            gaps = (weights + found).abs()
            assert float(gaps.min()) < 1e-4
            counts[int(gaps.argmin())] += 1
        expected = [100 * chance / sum(chances) for chance in chances]
        assert chisquare(counts, expected).pvalue > 1e-3
        together = estimate(model, text, ngram_tokens, 1024)
        exact = torch.stack([-nats(model, path) for path in every]).logsumexp(0)
        assert together == pytest.approx(-float(exact), abs=0.2)


def test_without_ngram_tokens_it_is_the_likelihood_of_the_tokens():
    model, text = tiny().model, [72, 101, 108, 108, 111]
    with torch.inference_mode():
        expected = float(nats(model, text))
    assert estimate(model, text, {}, samples=3) == pytest.approx(expected, rel=1e-5)


@given(
    st.lists(st.integers(0, 2), min_size=1, max_size=8),
    st.sets(st.lists(st.integers(0, 2), min_size=2, max_size=4).map(tuple), max_size=6),
)
def test_the_choices_at_each_place_spell_every_tokenization(text, ngrams):
    ngram_tokens = dict(enumerate(sorted(ngrams), start=3))
    choices = tokenizations(text, ngram_tokens)

    def spelled(place):
        if place == len(text):
            return [[]]
        return [
            [token, *rest]
            for token, length in choices[place]
            for rest in (spelled(place + length) if place + length <= len(text) else [])
        ]

    assert sorted(spelled(0)) == sorted(paths(text, ngram_tokens))
