"""Distillation targets, against the chain rule applied one position and class at a time."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from tests.adaptivocab.rows.cases import NGRAMS, START, next_probabilities, passage, sharp
from tests.conftest import SHAPES
from tests.counting import Counting
from trimtab.adaptivocab.rows.passages import Passage
from trimtab.adaptivocab.rows.scoring import score
from trimtab.adaptivocab.rows.targets import SMOOTHING, DistillationTargets, PassageTargets
from trimtab.adaptivocab.rows.trie import Trie

every = pytest.mark.parametrize("name", SHAPES)
starts = pytest.mark.parametrize("start", [START, None])


def by_passage(
    model, passages: list[Passage], trie: Trie, start: int | None
) -> list[PassageTargets]:
    return [
        PassageTargets.of(model, part, score(model, part.base, start), trie) for part in passages
    ]


@every
@starts
def test_a_passages_targets_are_what_the_model_expects_along_the_text(name, start):
    model, part, trie = sharp(name), passage(3, 24), Trie(NGRAMS)
    (targets,) = by_passage(model, [part], trie, start)
    base = part.base.tolist()
    deep = 0
    for row, begin in enumerate(part.starts.tolist()):
        after = next_probabilities(model, base[:begin], start)
        torch.testing.assert_close(targets.first[row], after[trie.firsts], rtol=1e-4, atol=1e-7)
        wanted = {}
        for end in range(begin + 1, len(base)):
            node = tuple(base[begin:end])
            probabilities = next_probabilities(model, base[:end], start)
            nodes = trie.children.get(node, [])
            wanted |= {
                child: pytest.approx(float(probabilities[child[-1]]), rel=1e-4) for child in nodes
            }
        assert targets.follow[row] == wanted
        deep += any(len(node) > 2 for node in wanted)
    assert deep


def test_a_longer_passage_takes_no_more_operations_on_a_device():
    model, trie, found = sharp(), Trie(NGRAMS), []
    for length in (24, 96):
        part = passage(3, length)
        states = score(model, part.base, START)
        with Counting() as counting:
            targets = PassageTargets.of(model, part, states, trie)
        found.append((counting.operations, sum(map(len, targets.follow))))
    (few, nodes), (many, more) = found
    assert 0 < nodes < more
    assert few == many


def slow_targets(model, passages: list[Passage], counted, start: int | None) -> Tensor:
    """Return every class's probability by the chain rule, each position and class apart.

    Where the text goes on as the n-gram does, the model is asked again; elsewhere the mean over
    all places where it does stands in, and `counted` as if seen `SMOOTHING` times.
    """
    nodes = {ngram[:end] for ngram in NGRAMS.tokens for end in range(2, len(ngram) + 1)}
    asked: dict = {node: [] for node in nodes}
    rows: list[tuple[dict, Tensor]] = []
    for part in passages:
        base = part.base.tolist()
        for begin in part.starts.tolist():
            known = {}
            for node in nodes:
                end = begin + len(node) - 1
                if tuple(base[begin:end]) == node[:-1] and end < len(base):
                    known[node] = float(next_probabilities(model, base[:end], start)[node[-1]])
                    asked[node].append(known[node])
            rows.append((known, next_probabilities(model, base[:begin], start)))
    mean = {
        node: (SMOOTHING * counted[node] + sum(seen)) / (SMOOTHING + len(seen))
        for node, seen in asked.items()
    }
    firsts = sorted({ngram[0] for ngram in NGRAMS.tokens})
    tokens = [*NGRAMS.tokens, *((first,) for first in firsts)]
    targets = torch.zeros(len(rows), len(tokens))
    for row, (known, after) in enumerate(rows):
        conditional = mean | known
        reached = {(first,): float(after[first]) for first in firsts}
        for node in sorted(nodes, key=len):
            reached[node] = reached[node[:-1]] * conditional[node]
        for node, probability in reached.items():
            stops = probability - sum(p for other, p in reached.items() if other[:-1] == node)
            owner = max((t for t in tokens if node[: len(t)] == t), key=len)
            targets[row, tokens.index(owner)] += stops
    return targets


def targets_of(
    model, passages: list[Passage], start: int | None
) -> tuple[DistillationTargets, dict]:
    trie = Trie(NGRAMS)
    counted = trie.conditionals(trie.counts(part.base.tolist() for part in passages))
    return DistillationTargets.of(
        passages, by_passage(model, passages, trie, start), trie, counted
    ), counted


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gpt2", "tiny-gemma2"])
@starts
def test_targets_are_the_chain_rules(name, start):
    model, passages = sharp(name), [passage(1, 20), passage(2, 30)]
    targets, counted = targets_of(model, passages, start)
    wanted = slow_targets(model, passages, counted, start)
    assert len(targets) == len(wanted) == sum(len(part.merged) for part in passages)
    torch.testing.assert_close(targets.dense(0, len(targets)), wanted, rtol=1e-3, atol=1e-9)


def test_any_part_of_the_targets_is_a_part_of_all():
    targets, _ = targets_of(sharp(), [passage(1), passage(2)], START)
    whole = targets.dense(0, len(targets))
    for start, end in pairwise([0, 1, 17, 40, len(targets)]):
        assert torch.equal(targets.dense(start, end), whole[start:end])


@every
def test_a_first_tokens_probability_is_divided_not_doubled(name):
    model, passages = sharp(name), [passage(1), passage(2)]
    targets, _ = targets_of(model, passages, START)
    dense = targets.dense(0, len(targets))
    divided = torch.zeros_like(targets.first).index_add(1, targets.trie.group, dense)
    torch.testing.assert_close(divided, targets.first)
    assert (dense >= 0).all()
    assert (dense.sum(1) < 1).all()


def test_texts_that_begin_no_ngram_have_mean_shares():
    model, trie = sharp(), Trie(NGRAMS)
    base = torch.full((6,), 4)
    part = Passage(base, base, torch.arange(6), torch.arange(1, 7), 6)
    counted = dict.fromkeys((node for node in trie.owner if len(node) > 1), 0.25)
    targets = DistillationTargets.of([part], by_passage(model, [part], trie, START), trie, counted)
    assert targets.positions.numel() == 0
    wanted = targets.first[:, trie.group] * trie.mean_shares(counted)
    assert torch.equal(targets.dense(0, 6), wanted)
