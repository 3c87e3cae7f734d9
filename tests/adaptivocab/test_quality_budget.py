"""The guard: which n-grams are merged, and with which rows that is decided."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch

from tests.adaptivocab.tokenizers import DOCUMENTS
from tests.conftest import tiny
from trimtab.adaptivocab import AdaptiVocab, Mode, Rows
from trimtab.adaptivocab.quality_budget import Point, Scored, positions
from trimtab.adaptivocab.vocabulary import Vocabulary
from trimtab.artifact import Artifact
from trimtab.corpus import Corpus, Document

LIMIT = 0.0105
TEXT = Corpus(
    "topics", [Document(str(n), text[:3000]) for n, text in enumerate(DOCUMENTS)], 0.5, 0.3
)


def calibrated(monkeypatch: pytest.MonkeyPatch, increase: Callable[[int, int], float]) -> Artifact:
    """Calibrate where merging `count` n-grams is said to cost ``increase(count, times asked)``."""
    asked: Counter[int] = Counter()

    def point(_: Scored, count: int) -> Point:
        asked[count] += 1
        return Point(count, 0.1, 1 + increase(count, asked[count]), 1.0)

    monkeypatch.setattr(Scored, "point", point)
    method = AdaptiVocab(
        size=160, mode=Mode.full, max_bpb_increase=LIMIT, rows=Rows.mean, validation_tokens=128,
        tokens=128, window=64,
    )  # fmt: skip
    loaded = tiny()
    return method.calibrate(loaded.model, loaded.tokenizer, TEXT)


def test_as_many_are_merged_as_the_limit_allows_the_least_costly_first(monkeypatch):
    artifact = calibrated(monkeypatch, lambda count, _: count / 1000)
    gate, pieces = artifact.statistics["gate"], artifact.statistics["pieces"]
    assert [point["ngrams"] for point in gate["dial"]] == positions(160) == [1, 2, 10, 40, 160]
    assert artifact.statistics["merged"] == 10
    assert gate["merged"] == [{
        "ngrams": 10, "saving": 0.1, "bits_per_byte": 1.01, "base_bits_per_byte": 1.0,
        "increase": pytest.approx(0.01),
    }]  # fmt: skip
    method = AdaptiVocab(mode=Mode.full, max_bpb_increase=LIMIT)
    loaded = tiny()
    with method.apply(loaded.model, loaded.tokenizer, artifact) as applied:
        section = applied.measured()["vocabulary"]
    assert section["dial"] == gate["dial"]
    assert section["validation"] == gate["merged"][-1]
    kept = [list(one) for one in Vocabulary.from_artifact(artifact).merged.pieces]
    assert kept == [pieces[number] for number in gate["order"][:10]]
    assert kept != pieces[:10]


def test_rows_that_cost_more_than_the_dials_did_step_back(monkeypatch):
    artifact = calibrated(
        monkeypatch, lambda count, times: count / 1000 + (times > 1 and count == 10)
    )
    assert [point["ngrams"] for point in artifact.statistics["gate"]["merged"]] == [10, 2]
    assert artifact.statistics["merged"] == 2
    assert len(Vocabulary.from_artifact(artifact).merged) == 2


def test_where_nothing_is_let_through_nothing_is_merged(monkeypatch):
    for increase in (lambda count, times: 1.0, lambda count, times: float(times > 1)):
        artifact = calibrated(monkeypatch, increase)
        assert artifact.statistics["merged"] == 0
        assert Vocabulary.from_artifact(artifact).rows is None


def test_the_rows_that_ship_are_those_that_were_measured(monkeypatch):
    measured = []
    of = Scored.of.__func__

    def spy(cls, model, rows, *arguments, **options):
        measured.append((rows, options["output"]))
        return of(cls, model, rows, *arguments, **options)

    monkeypatch.setattr(Scored, "of", classmethod(spy))
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
