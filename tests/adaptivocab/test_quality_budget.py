"""The quality budget: what n-grams cost, which are merged, and with which rows that is decided."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.adaptivocab.tokenizers import DOCUMENTS
from tests.conftest import tiny
from trimtab.adaptivocab import AdaptiVocab, Mode, Rows
from trimtab.adaptivocab.ngrams import NGrams
from trimtab.adaptivocab.quality_budget import (
    PRIOR,
    REACH,
    OperatingPoint,
    costs,
    operating_counts,
    order_by_cost,
)
from trimtab.adaptivocab.rows.passages import Passage
from trimtab.adaptivocab.rows.scoring import ScoredPassages
from trimtab.adaptivocab.vocabulary import Vocabulary
from trimtab.artifact import Artifact
from trimtab.corpus import Corpus, Document

NGRAMS = NGrams(10, ((1, 2), (1, 2, 3), (4, 5)))
LIMIT = 0.0105
TEXT = Corpus(
    "topics", [Document(str(n), text[:3000]) for n, text in enumerate(DOCUMENTS)], 0.5, 0.3
)


def scored(merged: list[int], excess: list[float], *, output: bool = True) -> ScoredPassages:
    lengths = torch.tensor([len(NGRAMS.expand([token])) for token in merged])
    ends = lengths.cumsum(0)
    base = torch.tensor(NGRAMS.expand(merged))
    passage = Passage(base, torch.tensor(merged), ends - lengths, ends, size=8)
    before = torch.linspace(1, 2, len(merged), dtype=torch.float64)
    after = before + torch.tensor(excess, dtype=torch.float64)
    return ScoredPassages([passage], [after], [before], output)


def test_what_an_ngram_costs_is_charged_to_it_and_what_follows_to_those_before():
    found = costs(scored([7, 10, 7, 12, 7], [0.5, 1.0, 0.2, 2.0, 0.4]), NGRAMS)
    charged = [1.0 + 0.2 + 0.4 / 2, 0.0, 2.0 + 0.4 / 2]  # no n-gram is before the first token
    average = sum(charged) / 2  # each of the two that occur saves one token
    expected = [
        (charged[0] + PRIOR * average) / (1 + PRIOR),
        average,
        (charged[2] + PRIOR * average) / (1 + PRIOR),
    ]
    assert found == pytest.approx(expected)


def test_an_ngram_that_is_only_read_is_not_charged_for_its_own_prediction():
    found = costs(scored([7, 10, 7, 12, 7], [0.5, 1.0, 0.2, 2.0, 0.4], output=False), NGRAMS)
    charged = [0.2 + 2.0 + 0.4 / 2, 0.0, 0.4 / 2]
    average = sum(charged) / 2
    expected = [(one + PRIOR * average) / (1 + PRIOR) for one in (charged[0], charged[2])]
    assert [found[0], found[2]] == pytest.approx(expected)


def test_charges_reach_only_so_far():
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
def test_operating_points_begin_with_few_and_end_with_all(count):
    found = operating_counts(count)
    assert found == sorted(set(found))
    assert 1 <= found[0] <= max(count / 1024 + 1, 1)
    assert found[-1] == count


def test_an_operating_point_counts_bits_per_byte_and_tokens():
    point = OperatingPoint.of(3, scored([7, 11, 12], [0.1, 0.2, 0.3]))
    assert point.saving == pytest.approx(1 - 3 / 6)
    assert point.base_bits_per_byte == pytest.approx(4.5 / math.log(2) / 8)
    assert point.increase == pytest.approx(0.6 / 4.5)


def calibrated(monkeypatch: pytest.MonkeyPatch, increase: Callable[[int, int], float]) -> Artifact:
    """Calibrate where merging `count` n-grams is said to cost ``increase(count, times asked)``."""
    asked: Counter[int] = Counter()

    def point(count: int, _: ScoredPassages) -> OperatingPoint:
        asked[count] += 1
        return OperatingPoint(count, 0.1, 1 + increase(count, asked[count]), 1.0)

    monkeypatch.setattr(OperatingPoint, "of", point)
    method = AdaptiVocab(
        size=160, mode=Mode.full, max_bpb_increase=LIMIT, rows=Rows.mean, validation_tokens=128,
        tokens=128, window=64,
    )  # fmt: skip
    loaded = tiny()
    return method.calibrate(loaded.model, loaded.tokenizer, TEXT)


def test_as_many_are_merged_as_the_limit_allows_the_least_costly_first(monkeypatch):
    artifact = calibrated(monkeypatch, lambda count, _: count / 1000)
    ngram_tokens = artifact.statistics["ngram_tokens"]
    budget = artifact.statistics["quality_budget"]
    points = budget["operating_points"]
    assert [point["ngrams"] for point in points] == operating_counts(160) == [1, 2, 10, 40, 160]
    assert artifact.statistics["merged"] == 10
    assert budget["merged"] == [{
        "ngrams": 10, "saving": 0.1, "bits_per_byte": 1.01, "base_bits_per_byte": 1.0,
        "increase": pytest.approx(0.01),
    }]  # fmt: skip
    loaded = tiny()
    with artifact.method.apply(loaded.model, loaded.tokenizer, artifact) as applied:
        section = applied.measured()["vocabulary"]
    assert section == {
        "merged": 10,
        "quality_budget": LIMIT,
        "operating_points": points,
        "validation": budget["merged"][-1],
        "reasons": {},
    }
    kept = [list(one) for one in Vocabulary.from_artifact(artifact).merged.tokens]
    assert kept == [ngram_tokens[number] for number in budget["order"][:10]]
    assert kept != ngram_tokens[:10]


def test_final_rows_that_cost_more_than_the_limit_step_back(monkeypatch):
    artifact = calibrated(
        monkeypatch, lambda count, times: count / 1000 + (times > 1 and count == 10)
    )
    tried = artifact.statistics["quality_budget"]["merged"]
    assert [point["ngrams"] for point in tried] == [10, 2]
    assert artifact.statistics["merged"] == 2
    assert len(Vocabulary.from_artifact(artifact).merged) == 2


def test_where_the_budget_allows_nothing_nothing_is_merged(monkeypatch):
    for increase in (lambda count, times: 1.0, lambda count, times: float(times > 1)):
        artifact = calibrated(monkeypatch, increase)
        assert artifact.statistics["merged"] == 0
        assert Vocabulary.from_artifact(artifact).rows is None
        loaded = tiny()
        with artifact.method.apply(loaded.model, loaded.tokenizer, artifact) as applied:
            section = applied.measured()["vocabulary"]
        assert (section["merged"], section["validation"]) == (0, None)
        assert section["reasons"] == {"validation": "no n-gram is within the quality budget"}


def test_the_rows_that_ship_are_those_that_were_measured(monkeypatch):
    measured = []
    of = ScoredPassages.of.__func__

    def spy(cls, model, rows, *arguments, **options):
        measured.append((rows, options["output"]))
        return of(cls, model, rows, *arguments, **options)

    monkeypatch.setattr(ScoredPassages, "of", classmethod(spy))
    for mode, output in ((Mode.full, True), (Mode.input, False)):
        method = AdaptiVocab(
            size=40, mode=mode, max_bpb_increase=100.0, validation_tokens=128, tokens=512, window=64
        )
        loaded = tiny()
        rows = Vocabulary.from_artifact(method.calibrate(loaded.model, loaded.tokenizer, TEXT)).rows
        last, predicted = measured[-1]
        assert {on for _, on in measured} == {output} == {predicted}
        assert rows is not None
        for name, part in last.to_tensors().items():
            assert torch.equal(part, rows.to_tensors()[name])
        assert (len(rows.head) > 0) == output
        measured.clear()
