from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.conftest import SHAPES, tiny
from trimtab.adaptivocab.ngrams import NGrams
from trimtab.adaptivocab.rows.passages import Passage
from trimtab.adaptivocab.rows.targets import SMOOTHING, Lesson, Targets, expected, predict, read
from trimtab.adaptivocab.rows.trie import Trie
from trimtab.adaptivocab.tokenizer.matching import Matcher

START = 257
# Of few tokens, so that texts go on as n-grams do; (3, 1, 2) and (0, 1, 2, 3) lack prefixes.
NGRAMS = NGrams(320, ((0, 1), (0, 1, 2, 3), (1, 1), (1, 1, 0), (3, 1, 2), (0, 2)))

every = pytest.mark.parametrize("name", SHAPES)
starts = pytest.mark.parametrize("start", [START, None])


def sharp(name: str = "tiny-llama") -> PreTrainedModel:
    """Return a model that is surer of the texts' tokens than random weights are."""
    model = tiny(name).model
    head = model.get_output_embeddings()
    weight = head.weight.detach().clone()
    weight[:5] = 0.7 * torch.randn(5, weight.shape[1], generator=torch.Generator().manual_seed(0))
    head.weight = torch.nn.Parameter(weight, requires_grad=False)
    return model


def passage(seed: int, length: int = 60) -> Passage:
    base = torch.randint(0, 5, (length,), generator=torch.Generator().manual_seed(seed))
    spans = Matcher(NGRAMS)(base.tolist())
    begins, ends, merged = (torch.tensor(part) for part in zip(*spans, strict=True))
    return Passage(base, merged, begins, ends, length)


@torch.no_grad()
def next_probabilities(model, text: list[int], start: int | None) -> Tensor:
    """Return what comes after a text according to the model, reading that text alone."""
    seen = text if start is None else [start, *text]
    if not seen:
        return torch.full((320,), 1 / 320)
    return model(input_ids=torch.tensor([seen])).logits[0, -1].softmax(-1)


def lessons_of(model, passages: list[Passage], trie: Trie, start: int | None) -> list[Lesson]:
    return [Lesson.of(model, part, read(model, part.base, start), trie) for part in passages]


@every
@starts
def test_nats_are_those_of_the_model_given_the_text_before(name, start):
    model, base = sharp(name), passage(0, 12).base
    nats = read(model, base, start).nats
    assert nats.dtype == torch.float64
    for position, token in enumerate(base.tolist()):
        probability = next_probabilities(model, base[:position].tolist(), start)[token]
        assert float(nats[position]) == pytest.approx(-math.log(probability), rel=1e-4, abs=1e-5)


def test_the_first_token_of_a_text_read_from_nothing_may_be_any():
    assert float(read(sharp(), torch.tensor([5, 6]), None).nats[0]) == pytest.approx(
        math.log(320), rel=1e-6
    )


@every
@starts
def test_hidden_states_lead_to_the_same_expectations_again(name, start):
    model, base = sharp(name), passage(0).base
    logits, hidden = predict(model, base, start)
    assert logits.shape == (60, 320)
    assert torch.equal(read(model, base, start).hidden, hidden)
    torch.testing.assert_close(expected(model, hidden), logits)


def test_no_hook_stays_behind():
    model = sharp()
    head = model.get_output_embeddings()
    with pytest.raises(IndexError):
        predict(model, torch.tensor([10**6]), None)
    predict(model, torch.tensor([1]), None)
    assert not head._forward_pre_hooks


@every
@starts
def test_a_lesson_has_what_the_model_expects_along_the_text(name, start):
    model, part, trie = sharp(name), passage(3, 24), Trie(NGRAMS)
    (lesson,) = lessons_of(model, [part], trie, start)
    base = part.base.tolist()
    deep = 0
    for row, begin in enumerate(part.starts.tolist()):
        after = next_probabilities(model, base[:begin], start)
        torch.testing.assert_close(lesson.first[row], after[trie.firsts], rtol=1e-4, atol=1e-7)
        wanted = {}
        for end in range(begin + 1, len(base)):
            node = tuple(base[begin:end])
            probabilities = next_probabilities(model, base[:end], start)
            nodes = trie.children.get(node, [])
            wanted |= {
                child: pytest.approx(float(probabilities[child[-1]]), rel=1e-4) for child in nodes
            }
        assert lesson.follow[row] == wanted
        deep += any(len(node) > 2 for node in wanted)
    assert deep


def slow_targets(model, passages: list[Passage], counted, start: int | None) -> Tensor:
    """Return every class's probability by the chain rule, each position and class apart.

    Where the text goes on as the n-gram does, the model is asked again; elsewhere the mean over
    all places where it does stands in, and `counted` as if seen `SMOOTHING` times.
    """
    nodes = {pieces[:end] for pieces in NGRAMS.pieces for end in range(2, len(pieces) + 1)}
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
    firsts = sorted({pieces[0] for pieces in NGRAMS.pieces})
    tokens = [*NGRAMS.pieces, *((first,) for first in firsts)]
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


def targets_of(model, passages: list[Passage], start: int | None) -> tuple[Targets, dict]:
    trie = Trie(NGRAMS)
    counted = trie.conditionals(trie.counts(part.base.tolist() for part in passages))
    return Targets.of(passages, lessons_of(model, passages, trie, start), trie, counted), counted


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
def test_a_first_pieces_probability_is_divided_not_doubled(name):
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
    targets = Targets.of([part], lessons_of(model, [part], trie, START), trie, counted)
    assert targets.positions.numel() == 0
    wanted = targets.first[:, trie.group] * trie.mean_shares(counted)
    assert torch.equal(targets.dense(0, 6), wanted)
