"""Settings that calibration chooses: from what, by what, and what an artifact then is."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from tests.conftest import random_inputs
from tests.models.contract import draw
from trimtab.artifact import Artifact
from trimtab.corpus import Corpus, Split
from trimtab.errors import MisfitError
from trimtab.larosa import (
    Allocation,
    Count,
    LaRoSA,
    Precision,
    Prefill,
    Selection,
    Transforms,
    checkpoint,
    comparison,
)
from trimtab.larosa.auto import concrete
from trimtab.larosa.export import load_exported
from trimtab.models.loading import LoadedModel
from trimtab.models.sources import DType
from trimtab.windows import token_windows

SMALL = {"tokens": 512, "window": 64, "probe_tokens": 256}
AUTO = LaRoSA(sparsity=0.6, selection=Selection.auto, allocation=Allocation.auto, **SMALL)
NAMES = "selection", "allocation", "transforms"


@dataclass
class Calibrated:
    """A model, its artifact of settings that leave a choice, and what the layers' passes left.

    No choice and no sparsity changes what these find.
    """

    loaded: LoadedModel
    artifact: Artifact
    checkpoint: Path

    @property
    def rows(self) -> list[dict]:
        return self.artifact.statistics["candidates"]

    @property
    def chosen(self) -> LaRoSA:
        """The method with the settings that were chosen."""
        return replace(AUTO, **self.artifact.parameters["chosen"])


@pytest.fixture(scope="module")
def calibrated(corpus, tmp_path_factory) -> Calibrated:
    loaded, folder = draw("tiny-llama", DType.float32, tied=False), tmp_path_factory.mktemp("auto")
    return Calibrated(
        loaded, AUTO.calibrate(loaded.model, loaded.tokenizer, corpus, folder), folder
    )


def settings_of(method: LaRoSA) -> tuple[str, ...]:
    return tuple(getattr(method, name).value for name in NAMES)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"selection": "auto"}, ["threshold steepest auto", "topk steepest auto"]),
        ({"allocation": "auto"}, ["threshold steepest auto", "threshold uniform all"]),
        (
            {"selection": "auto", "allocation": "alpha", "transforms": "all"},
            ["threshold alpha all", "topk alpha all"],
        ),
        (
            {"selection": "capped", "allocation": "auto", "transforms": "none"},
            ["capped steepest none", "capped uniform none"],
        ),
        (
            {"allocation": "auto", "basis": "none"},
            ["threshold steepest auto", "threshold uniform none"],
        ),
        (
            {"allocation": "auto", "selection": "auto"},
            ["threshold steepest auto", "topk steepest auto",
             "threshold uniform all", "topk uniform all"],
        ),
    ],
    ids=str,
)  # fmt: skip
def test_settings_leave_these_candidates_the_defaults_first(settings, expected):
    assert [" ".join(settings_of(one)) for one in concrete(LaRoSA(**settings))] == expected


def test_the_chosen_candidate_is_the_one_under_which_validation_text_is_likeliest(
    calibrated, corpus
):
    """By artifacts of the candidates' own settings, and transformers' own loss."""
    model, tokenizer = calibrated.loaded.model, calibrated.loaded.tokenizer
    windows = token_windows(corpus.splits[Split.validation], tokenizer, 4, 64)

    def nats() -> float:
        losses = [model(input_ids=one[None], labels=one[None]).loss for one in windows]
        return float(torch.stack(losses).double().mean())

    dense, found = nats(), []
    for method, row in zip(concrete(AUTO), calibrated.rows, strict=True):
        artifact = method.calibrate(model, tokenizer, corpus, calibrated.checkpoint)
        with method.apply(model, tokenizer, artifact) as applied:
            with applied.recording():
                found.append(nats())
            share = applied.measured()["sparsity"]["bytes_fraction"]
        assert tuple(row[name] for name in NAMES) == settings_of(method)
        assert row["excess"]["estimate"] == pytest.approx(found[-1] - dense, abs=1e-5)
        assert row["excess"]["low"] <= row["excess"]["estimate"] <= row["excess"]["high"]
        assert row["bytes_fraction"] == pytest.approx(share) == pytest.approx(0.4, abs=0.02)
    assert sorted(found)[1] - min(found) > 1e-3  # no tie
    assert [row["chosen"] for row in calibrated.rows] == [one == min(found) for one in found]
    assert calibrated.artifact.statistics["dense_nats_per_token"] == pytest.approx(dense)
    assert calibrated.artifact.statistics["compared_tokens"] == windows.numel()


def test_the_artifact_does_what_that_of_the_chosen_settings_does(calibrated, corpus, tmp_path):
    model, tokenizer = calibrated.loaded.model, calibrated.loaded.tokenizer
    own = calibrated.chosen.calibrate(model, tokenizer, corpus)
    calibrated.artifact.save(tmp_path / "artifact")
    loaded = Artifact.load(tmp_path / "artifact")
    assert loaded.method == AUTO
    assert loaded.parameters["plan"] == own.parameters["plan"]
    assert own.statistics.items() <= loaded.statistics.items()
    ids = random_inputs(1, 40)
    with calibrated.chosen.apply(model, tokenizer, own) as applied:
        expected, kernel = model(ids).logits, applied.kernel
    with AUTO.apply(model, tokenizer, loaded) as applied:
        assert torch.equal(model(ids).logits, expected)
        with applied.recording():
            model(ids)
        told = " ".join(f"{name}={getattr(calibrated.chosen, name)}" for name in NAMES)
        assert applied.kernel == f"{kernel} ({told})"
        assert applied.measured()["sparsity"]["candidates"] == calibrated.rows


def test_an_exported_model_has_the_chosen_settings(calibrated, tmp_path):
    model, tokenizer = calibrated.loaded.model, calibrated.loaded.tokenizer
    calibrated.artifact.export(model, tmp_path / "model")
    description = json.loads((tmp_path / "model" / "trimtab.json").read_text())
    assert description["settings"] == calibrated.chosen.config()
    ids = random_inputs(1, 40)
    with AUTO.apply(model, tokenizer, calibrated.artifact):
        expected = model(ids).logits
    assert torch.equal(load_exported(tmp_path / "model")(ids).logits, expected)


def test_killed_among_the_candidates_it_resumes_to_the_same_bits_and_measures_nothing_again(
    calibrated, corpus, monkeypatch
):
    model, tokenizer = calibrated.loaded.model, calibrated.loaded.tokenizer
    whole, tried = comparison.rate_difference, []

    def die(*arguments, **more):
        tried.append(arguments)
        if len(tried) == 2:
            raise KeyboardInterrupt
        return whole(*arguments, **more)

    monkeypatch.setattr(comparison, "rate_difference", die)
    with pytest.raises(KeyboardInterrupt):
        AUTO.calibrate(model, tokenizer, corpus, calibrated.checkpoint)
    monkeypatch.setattr(checkpoint, "save_tensors", None)
    found = AUTO.calibrate(model, tokenizer, corpus, calibrated.checkpoint)
    assert (found.parameters, found.statistics) == (
        calibrated.artifact.parameters, calibrated.artifact.statistics
    )  # fmt: skip
    assert found.tensors.keys() == calibrated.artifact.tensors.keys()
    for name, tensor in found.tensors.items():
        assert torch.equal(tensor, calibrated.artifact.tensors[name])


def test_of_candidates_that_differ_in_rounding_alone_the_first_is_chosen(calibrated, corpus):
    model, tokenizer = calibrated.loaded.model, calibrated.loaded.tokenizer
    method = replace(AUTO, sparsity=0.0, count=Count.nominal)
    artifact = method.calibrate(model, tokenizer, corpus, calibrated.checkpoint)
    assert artifact.parameters["chosen"] == dict(
        zip(NAMES, ("threshold", "steepest", "auto"), strict=True)
    )


def test_a_candidate_that_cannot_save_as_much_is_left_out(calibrated, corpus, capsys):
    model, tokenizer = calibrated.loaded.model, calibrated.loaded.tokenizer
    method = LaRoSA(
        sparsity=0.9, allocation=Allocation.auto, precision=Precision.model, **SMALL
    )  # fmt: skip
    rows = method.calibrate(model, tokenizer, corpus).statistics["candidates"]
    assert [row["chosen"] for row in rows] == [True, False]
    assert rows[1]["excess"] is rows[1]["bytes_fraction"] is None
    assert "lower larosa.sparsity" in rows[1]["reason"]
    assert rows[1]["reason"] in capsys.readouterr().err
    with pytest.raises(MisfitError, match="and 0.950 are asked for"):
        replace(method, sparsity=0.95, transforms=Transforms.all).calibrate(
            model, tokenizer, corpus
        )


def test_prompts_that_stay_dense_and_a_corpus_without_validation_text_still_tell_which_is_better(
    calibrated, corpus, capsys
):
    documents = [document for split in Split for document in corpus.splits[split]]
    without = Corpus("words", documents, calibration=0.7, validation=0.0)
    method = replace(AUTO, prefill=Prefill.dense, allocation=Allocation.steepest)
    artifact = method.calibrate(calibrated.loaded.model, calibrated.loaded.tokenizer, without)
    assert artifact.statistics["compared"] == "calibration"
    assert "compared on the calibration text" in capsys.readouterr().err
    found = [row["excess"]["estimate"] for row in artifact.statistics["candidates"]]
    assert found[0] != found[1]
    assert 0 not in found
