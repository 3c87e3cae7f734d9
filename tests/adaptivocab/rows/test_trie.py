from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.adaptivocab.ngrams import NGrams
from trimtab.adaptivocab.rows.trie import Trie

ALPHABET = range(3)
OTHER = len(ALPHABET)  # any token that is in no n-gram
LONGEST = 4

ngrams = st.lists(
    st.lists(st.sampled_from(ALPHABET), min_size=2, max_size=LONGEST).map(tuple),
    min_size=1,
    max_size=8,
    unique=True,
).map(lambda found: NGrams(9, tuple(found)))
token_texts = st.lists(st.lists(st.sampled_from([*ALPHABET, OTHER]), max_size=20), max_size=3)


def prefixes(found: NGrams) -> set[tuple[int, ...]]:
    return {ngram[:end] for ngram in found.tokens for end in range(1, len(ngram) + 1)}


def class_of(found: NGrams, text: tuple[int, ...]) -> int:
    """Return the class of the longest token that a text begins with."""
    begun = [number for number, one in enumerate(found.tokens) if text[: len(one)] == one]
    if begun:
        return max(begun, key=lambda number: len(found.tokens[number]))
    return len(found) + sorted({ngram[0] for ngram in found.tokens}).index(text[0])


@given(ngrams)
def test_classes_are_the_ngrams_and_then_their_first_tokens(found):
    trie = Trie(found)
    firsts = [ngram[0] for ngram in found.tokens]
    assert trie.firsts.tolist() == sorted(set(firsts))
    assert trie.firsts[trie.group].tolist() == firsts + sorted(set(firsts))


@given(ngrams)
def test_every_prefix_belongs_to_the_longest_token_that_begins_it(found):
    trie = Trie(found)
    assert trie.owner == {node: class_of(found, node) for node in prefixes(found)}
    children = {node: [p for p in prefixes(found) if p[:-1] == node] for node in prefixes(found)}
    assert {node: sorted(trie.children.get(node, [])) for node in children} == {
        node: sorted(after) for node, after in children.items()
    }


@given(ngrams, token_texts)
def test_counts_are_of_all_occurrences_overlapping_or_not(found, texts):
    counted = Trie(found).counts(texts)
    assert counted == {
        node: sum(
            tuple(text[start : start + len(node)]) == node
            for text in texts
            for start in range(len(text))
        )
        for node in prefixes(found)
    }


@given(ngrams, token_texts)
def test_conditionals_are_shares_of_the_prefix(found, texts):
    trie = Trie(found)
    counted = trie.counts(texts)
    shares = trie.conditionals(counted)
    assert set(shares) == {node for node in prefixes(found) if len(node) > 1}
    for node, share in shares.items():
        assert share * counted[node[:-1]] == pytest.approx(counted[node])
        assert share == 0 or counted[node[:-1]]


@given(ngrams, st.integers(0, 2**32))
@settings(max_examples=60)
def test_split_is_what_going_through_all_continuations_gives(found, seed):
    draw = np.random.default_rng(seed)
    next_ = {node: draw.dirichlet([0.5] * (OTHER + 1)) for node in sorted(prefixes(found))}
    trie = Trie(found)
    conditionals = {
        node: float(next_[node[:-1]][node[-1]]) for node in prefixes(found) if len(node) > 1
    }
    mean = trie.mean_shares(conditionals)
    for first in trie.firsts.tolist():
        expected = dict.fromkeys(range(len(trie.group)), 0.0)
        for text in product([*ALPHABET, OTHER], repeat=LONGEST - 1):
            text = (first, *text)
            chain = [next_.get(text[:end], [1 / (OTHER + 1)] * (OTHER + 1)) for end in (1, 2, 3)]
            probability = np.prod([p[token] for p, token in zip(chain, text[1:], strict=True)])
            expected[class_of(found, text)] += float(probability)
        split = trie.split((first,), conditionals)
        assert sum(split.values()) == pytest.approx(1)
        assert split == {number: pytest.approx(expected[number], abs=1e-12) for number in split}
        group = trie.firsts[trie.group] == first
        assert set(split) == set(group.nonzero()[:, 0].tolist())
        wanted = torch.tensor(list(expected.values()))[group]
        torch.testing.assert_close(mean[group], wanted, atol=1e-6, rtol=0)


def test_a_prefix_that_is_no_token_leaves_its_share_to_the_one_before():
    """Of `1 2 3 4` and `1 2`, the text `1 2 3` and something else is `1 2`."""
    trie = Trie(NGrams(9, ((1, 2, 3, 4), (1, 2))))
    split = trie.split((1,), {(1, 2): 0.5, (1, 2, 3): 0.5, (1, 2, 3, 4): 0.5})
    assert split == {0: 0.125, 1: 0.375, 2: 0.5}


def test_probabilities_that_rounding_takes_over_1_leave_nothing():
    trie = Trie(NGrams(9, ((1, 2), (1, 3))))
    assert trie.split((1,), {(1, 2): 0.5, (1, 3): 0.5 + 1e-9})[2] == 0
