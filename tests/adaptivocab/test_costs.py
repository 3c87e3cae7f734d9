from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trimtab.adaptivocab.ngrams import NGrams
from trimtab.adaptivocab.quality_budget import PRIOR, REACH, Scored, costs, order_by_cost, positions
from trimtab.adaptivocab.rows.passages import Passage

NGRAMS = NGrams(10, ((1, 2), (1, 2, 3), (4, 5)))


def scored(merged: list[int], excess: list[float], *, output: bool = True) -> Scored:
    lengths = torch.tensor([len(NGRAMS.expand([token])) for token in merged])
    ends = lengths.cumsum(0)
    base = torch.tensor(NGRAMS.expand(merged))
    passage = Passage(base, torch.tensor(merged), ends - lengths, ends, size=8)
    before = torch.linspace(1, 2, len(merged), dtype=torch.float64)
    return Scored([passage], [before + torch.tensor(excess, dtype=torch.float64)], [before], output)


def test_what_an_ngram_costs_is_blamed_on_it_and_what_follows_on_those_before():
    found = costs(scored([7, 10, 7, 12, 7], [0.5, 1.0, 0.2, 2.0, 0.4]), NGRAMS)
    blame = [1.0 + 0.2 + 0.4 / 2, 0.0, 2.0 + 0.4 / 2]  # the first token has nobody to blame
    average = sum(blame) / 2  # each of the two that occur saves one token
    expected = [
        (blame[0] + PRIOR * average) / (1 + PRIOR),
        average,
        (blame[2] + PRIOR * average) / (1 + PRIOR),
    ]
    assert found == pytest.approx(expected)


def test_an_ngram_that_is_only_read_is_not_to_blame_for_how_it_came():
    found = costs(scored([7, 10, 7, 12, 7], [0.5, 1.0, 0.2, 2.0, 0.4], output=False), NGRAMS)
    blame = [0.2 + 2.0 + 0.4 / 2, 0.0, 0.4 / 2]
    average = sum(blame) / 2
    expected = [(one + PRIOR * average) / (1 + PRIOR) for one in (blame[0], blame[2])]
    assert [found[0], found[2]] == pytest.approx(expected)


def test_blame_reaches_only_so_far():
    merged = [10, *[7] * REACH, 8]
    near = costs(scored(merged, [0.0] * REACH + [1.0, 0.0]), NGRAMS)
    far = costs(scored(merged, [0.0] * REACH + [0.0, 1.0]), NGRAMS)
    assert near[0] > 0
    assert far == [0.0, 0.0, 0.0]


@given(st.lists(st.floats(-5, 5), min_size=3, max_size=3))
def test_the_order_is_by_cost_but_prefixes_come_first(cost):
    order = order_by_cost(NGRAMS, cost)
    assert sorted(order) == [0, 1, 2]
    assert order.index(0) < order.index(1)
    assert (order.index(0) < order.index(2)) == (min(cost[0], cost[1]) <= cost[2])


@given(st.integers(1, 5000))
def test_the_dial_begins_with_few_and_ends_with_all(count):
    found = positions(count)
    assert found == sorted(set(found))
    assert 1 <= found[0] <= max(count / 1024 + 1, 1)
    assert found[-1] == count


def test_a_point_counts_bits_per_byte_and_tokens():
    point = scored([7, 11, 12], [0.1, 0.2, 0.3]).point(3)
    assert point.saving == pytest.approx(1 - 3 / 6)
    assert point.base_bits_per_byte == pytest.approx(4.5 / math.log(2) / 8)
    assert point.increase == pytest.approx(0.6 / 4.5)
