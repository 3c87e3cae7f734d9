"""Rows fitted on texts: by hidden states, by logistic regression, by gradient."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.adaptivocab.rows.cases import NGRAMS, passage, sharp
from tests.conftest import SHAPES
from trimtab.adaptivocab import Rows
from trimtab.adaptivocab.ngrams import NGrams
from trimtab.adaptivocab.quality_budget import OperatingPoint
from trimtab.adaptivocab.rows import gradient
from trimtab.adaptivocab.rows.combination import combined, weights
from trimtab.adaptivocab.rows.extended import NewRows, extended
from trimtab.adaptivocab.rows.fit import Extension, RowFitter
from trimtab.adaptivocab.rows.gradient import distill, match_hidden_states
from trimtab.adaptivocab.rows.passages import Passage, with_start
from trimtab.adaptivocab.rows.scoring import (
    ScoredPassages,
    ScoredText,
    logits_of,
    predict,
    score,
    score_texts,
)
from trimtab.adaptivocab.rows.targets import DistillationTargets, PassageTargets
from trimtab.adaptivocab.rows.trie import Trie
from trimtab.adaptivocab.tokenizer.extender import TokenizerExtender
from trimtab.models.random import byte_tokenizer

some = pytest.mark.parametrize("name", ["tiny-llama", "tiny-gpt2", "tiny-gemma2"])
START = byte_tokenizer().bos_token_id
PASSAGES = [passage(seed) for seed in range(4)]
FEW = NGrams(320, ((0, 1), (1, 1), (0, 2), (1, 1, 0)))  # each after its own prefixes


def papers(model: PreTrainedModel, ngrams: NGrams, *, head: bool) -> Tensor:
    module = model.get_output_embeddings() if head else model.get_input_embeddings()
    return combined(module.weight, ngrams, weights(ngrams, Rows.exponential, head=head)).detach()


@torch.no_grad()
def distance(model: PreTrainedModel, rows: Tensor, part: Passage, layer: int) -> float:
    """Return how far hidden states after a layer are from those of base tokens, relative."""

    def hidden(ids: Tensor) -> Tensor:
        output = model(input_ids=with_start(ids, START)[None], output_hidden_states=True)
        return output.hidden_states[layer][0, 1:]

    wanted = hidden(part.base)[part.ends - 1]
    with extended(model, NewRows.of_input(rows), output=False):
        found = hidden(part.merged)
    error = (found - wanted).square().sum(-1) / wanted.square().sum(-1)
    return float(error.mean())


@some
def test_matching_brings_hidden_states_closer_in_every_passage(name, monkeypatch):
    monkeypatch.setattr(gradient, "MATCHED_LAYERS", 2)
    monkeypatch.setattr(gradient, "MATCHING_EPOCHS", 20)
    model = sharp(name)
    before = papers(model, NGRAMS, head=False)
    after = match_hidden_states(model, before, PASSAGES, START)
    assert after.shape == before.shape
    for part in PASSAGES:
        assert distance(model, after, part, 2) < 0.99 * distance(model, before, part, 2)


def test_rows_of_ngrams_that_no_passage_has_stay_where_they_were():
    model = sharp()
    ngrams = NGrams(320, (*NGRAMS.tokens, (4, 4, 4)))
    before = papers(model, ngrams, head=False)
    after = match_hidden_states(model, before, PASSAGES, START)
    assert not any((part.merged == 320 + len(NGRAMS)).any() for part in PASSAGES)
    assert torch.equal(after[-1], before[-1])
    assert not torch.equal(after[0], before[0])


def targets_of(model: PreTrainedModel, ngrams: NGrams, parts: list[Passage]) -> DistillationTargets:
    trie = Trie(ngrams)
    found = [PassageTargets.of(model, part, score(model, part.base, START), trie) for part in parts]
    counts = trie.counts([passage(seed).base.tolist() for seed in range(9)])
    return DistillationTargets.of(parts, found, trie, trie.conditionals(counts))


@torch.no_grad()
def cross_entropy(
    model: PreTrainedModel, rows: NewRows, parts: list[Passage], targets: DistillationTargets
) -> float:
    """Return the nats per merged token to what the base model says, divided among n-grams."""
    firsts, begin, total = targets.trie.firsts, 0, 0.0
    for part in parts:
        end = begin + len(part.merged)
        wanted = logits_of(model, score(model, part.base, START).hidden[part.starts]).softmax(-1)
        shares = targets.dense(begin, end)
        wanted[:, firsts] = shares[:, -len(firsts) :]
        wanted = torch.cat([wanted, shares[:, : -len(firsts)]], 1)
        with extended(model, rows, output=True):
            log_probs = predict(model, part.merged, START)[0].log_softmax(-1)
        total -= float((wanted * log_probs).sum())
        begin = end
    return total / begin


@some
def test_distilling_comes_closer_to_the_base_model(name, monkeypatch):
    monkeypatch.setattr(gradient, "DISTILLING_EPOCHS", 10)
    model = sharp(name)
    targets = targets_of(model, NGRAMS, PASSAGES)
    states = [score(model, part.base, START) for part in PASSAGES]
    firsts = targets.trie.firsts
    head = model.get_output_embeddings().weight.detach()
    rows = NewRows(
        papers(model, NGRAMS, head=False), papers(model, NGRAMS, head=True), firsts,
        head[firsts].float(),
    )  # fmt: skip
    after = distill(model, rows, PASSAGES, states, targets, START)
    assert torch.equal(after.changed, rows.changed)
    before, now = (cross_entropy(model, one, PASSAGES, targets) for one in (rows, after))
    assert now < before - 0.02
    for name in ("input", "head", "changed_head"):
        assert not torch.equal(getattr(after, name), getattr(rows, name))


def texts_for(model: PreTrainedModel, seeds: range) -> list[ScoredText]:
    tokenizer = byte_tokenizer()
    texts = [tokenizer.decode(passage(seed).base.tolist()) for seed in seeds]
    return score_texts(model, tokenizer, texts, "a text")


def fitted(
    model: PreTrainedModel,
    rows: Rows,
    texts: list[ScoredText],
    *,
    counted: list[list[int]] | None = None,
    output: bool = True,
) -> Extension:
    if counted is None:
        counted = [passage(seed).base.tolist() for seed in range(9)]
    extender = TokenizerExtender(byte_tokenizer())
    return RowFitter(model, extender, counted, rows, output=output).extend(FEW, texts)


def scored(model: PreTrainedModel, extension: Extension, texts: list[ScoredText], *, output: bool):
    parts = [Passage.of(text.text, extension.tokenizer, FEW) for text in texts]
    return ScoredPassages.of(model, extension.rows, parts, texts, START, output=output)


def test_fitted_rows_say_what_the_base_model_does_better_than_the_papers():
    model = sharp()
    texts = texts_for(model, range(4))
    found = {}
    for kind in (Rows.exponential, Rows.fitted, Rows.distilled):
        extension = fitted(model, kind, texts)
        parts = [Passage.of(text.text, extension.tokenizer, FEW) for text in texts]
        found[kind] = cross_entropy(model, extension.rows, parts, targets_of(model, FEW, parts))
    assert found[Rows.fitted] < found[Rows.exponential] - 0.02
    assert found[Rows.distilled] < found[Rows.exponential] - 0.02


def test_ngrams_are_predicted_as_often_as_the_base_model_would_go_on_so(monkeypatch):
    """The head is fitted on hidden states of the model with n-grams for input."""
    model = sharp()
    felt = 30 * papers(model, FEW, head=False)  # else a tiny model hardly feels its input
    monkeypatch.setattr("trimtab.adaptivocab.rows.fit.match_hidden_states", lambda *_: felt)
    texts = texts_for(model, range(4))
    extension = fitted(model, Rows.fitted, texts)
    parts = [Passage.of(text.text, extension.tokenizer, FEW) for text in texts]
    targets = targets_of(model, FEW, parts)
    wanted = targets.dense(0, len(targets)).mean(0)[: len(FEW)]
    with extended(model, extension.rows, output=True):
        logits = torch.cat([predict(model, part.merged, START)[0] for part in parts])
    found = logits.softmax(-1)[:, 320:].mean(0)
    torch.testing.assert_close(found, wanted, rtol=0.02, atol=1e-4)


def test_more_text_to_count_on_moves_the_head():
    model = sharp()
    texts = texts_for(model, range(1))
    heads = [
        fitted(model, Rows.fitted, texts, counted=counted).rows.head
        for counted in ([], [[0, 1] * 50])
    ]
    assert not torch.allclose(*heads)


@pytest.mark.parametrize("rows", [Rows.fitted, Rows.distilled, Rows.exponential])
def test_where_ngrams_are_only_read_the_head_gets_no_rows(rows):
    model = sharp()
    texts = texts_for(model, range(2))
    both, alone = (fitted(model, rows, texts, output=output).rows for output in (True, False))
    assert torch.equal(both.input, alone.input)
    assert len(both.head) == len(FEW)
    assert alone.head.numel() == alone.changed.numel() == alone.changed_head.numel() == 0


@pytest.mark.parametrize("name", SHAPES)
def test_what_is_only_read_costs_what_the_base_head_says(name):
    """Against the model itself, asked for one token at a time."""
    model = sharp(name)
    texts = texts_for(model, range(2))
    extension = fitted(model, Rows.exponential, texts, output=False)
    found = scored(model, extension, texts, output=False)
    start = START
    for part, nats, base_nats, text in zip(
        found.passages, found.nats, found.base_nats, texts, strict=True
    ):
        single = text.states.nats
        with extended(model, extension.rows, output=False), torch.no_grad():
            for position in (0, 1, len(part.merged) // 2, len(part.merged) - 1):
                before = with_start(part.merged[:position], start)[None]
                begin, end = int(part.starts[position]), int(part.ends[position])
                log_probs = model(input_ids=before).logits[0, -1].log_softmax(-1)
                first = -float(log_probs[part.base[begin]])
                later = float(single[begin + 1 : end].sum())
                assert float(nats[position]) == pytest.approx(first + later, rel=1e-4)
                assert float(base_nats[position]) == pytest.approx(float(single[begin:end].sum()))
    size = sum(part.size for part in found.passages)
    whole = sum(float(text.states.nats.sum()) for text in texts)
    assert OperatingPoint.of(4, found).base_bits_per_byte == pytest.approx(
        whole / math.log(2) / size
    )


def test_rows_for_the_embedding_alone_leave_the_head_alone():
    rows = NewRows.of_input(torch.ones(2, 3))
    assert rows.head.shape == rows.changed_head.shape == (0, 3)
    assert rows.changed.dtype == torch.int64
