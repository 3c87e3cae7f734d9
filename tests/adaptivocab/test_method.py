"""AdaptiVocab as a method: calibrated, applied, and undone."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from tests.conftest import random_inputs, tiny
from trimtab.adaptivocab import AdaptiVocab, Mode, Rows
from trimtab.adaptivocab.vocabulary import Vocabulary
from trimtab.artifact import Artifact
from trimtab.calibration import artifacts_for
from trimtab.capabilities import ChangesVocabulary, ProposesDrafts
from trimtab.corpus import Corpus, Document, Split, encode
from trimtab.errors import ConfigError, MisfitError, TrimtabError
from trimtab.generation import Engine
from trimtab.larosa import Allocation, Basis, LaRoSA, Transforms
from trimtab.models.facts import longest_text
from trimtab.models.loading import LoadedModel
from trimtab.stack import Stack

SMALL: dict[str, Any] = {
    "size": 20, "mode": Mode.full, "max_bpb_increase": None, "tokens": 128,
    "validation_tokens": 128, "window": 64,
}  # fmt: skip


def method(**changes: Any) -> AdaptiVocab:
    return AdaptiVocab(**SMALL | changes)


def calibrated(adaptivocab: AdaptiVocab, loaded: LoadedModel, corpus: Corpus) -> Artifact:
    return adaptivocab.calibrate(loaded.model, loaded.tokenizer, corpus)


def generated(loaded: LoadedModel, ids: torch.Tensor, **options: Any) -> list[int]:
    options = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0} | options
    with torch.inference_mode():
        output: torch.Tensor = loaded.model.generate(ids, **options)
    return list(output[0].tolist())


@pytest.mark.parametrize("rows", [rows for rows in Rows if rows is not Rows.recovered])
def test_text_in_ngrams_is_shorter_and_the_model_comes_back(
    rows: Rows, corpus: Corpus, tiny_llama: LoadedModel
) -> None:
    model, tokenizer = tiny_llama.model, tiny_llama.tokenizer
    artifact = calibrated(method(rows=rows), tiny_llama, corpus)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = model.config.to_dict()
    text = corpus.documents(Split.test)[0].text
    base = encode(tokenizer, text)
    with method(rows=rows).apply(model, tokenizer, artifact) as applied:
        merged = encode(applied.tokenizer, text)
        ngrams = Vocabulary.from_artifact(artifact).merged
        assert ngrams.expand(merged) == base
        assert len(merged) < 0.9 * len(base)
        logits = model(torch.tensor([merged[:32]])).logits
        assert logits.shape[-1] == model.config.vocab_size == ngrams.size
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert model.config.to_dict() == config


def test_windows_may_reach_the_last_position_of_a_model() -> None:
    """A window that is cut within a character has that character whole."""
    loaded = tiny("tiny-gpt2")
    positions = longest_text(loaded.model.config)
    texts = [" ".join(f"{n}é{n * i % 7}ÿö" for i in range(positions)) for n in range(4)]
    long = {"window": positions - 1, "tokens": 4 * positions, "validation_tokens": positions}
    adaptivocab = method(max_bpb_increase=10, **long)
    artifact = calibrated(adaptivocab, loaded, Corpus.for_calibration(texts))
    assert artifact.statistics["merged"]


def test_calibration_repeats_to_the_bit(corpus: Corpus) -> None:
    first, second = (
        calibrated(method(max_bpb_increase=0.5, mode=Mode.auto), tiny(), corpus) for _ in range(2)
    )
    assert first.statistics == second.statistics
    assert first.files == second.files
    assert first.tensors.keys() == second.tensors.keys()
    assert all(torch.equal(first.tensors[name], second.tensors[name]) for name in first.tensors)


def test_a_killed_calibration_does_not_measure_the_operating_points_again(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited, loaded = method(max_bpb_increase=0.5), tiny()
    arguments = loaded.model, loaded.tokenizer, corpus, tmp_path / "checkpoint"
    whole = limited.calibrate(*arguments)
    monkeypatch.delattr("trimtab.adaptivocab.quality_budget.QualityBudget.measure")
    resumed = limited.calibrate(*arguments)
    assert resumed.statistics == whole.statistics
    assert all(torch.equal(resumed.tensors[name], whole.tensors[name]) for name in whole.tensors)


@pytest.mark.parametrize("left", [b"", b'{"order": [1,', bytes(20), b"\xff"])
def test_damaged_operating_points_are_measured_again(
    corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str], left: bytes
) -> None:
    limited, loaded = method(max_bpb_increase=0.5), tiny()
    arguments = loaded.model, loaded.tokenizer, corpus, tmp_path
    whole = limited.calibrate(*arguments)
    (measured,) = tmp_path.iterdir()
    content = measured.read_bytes()
    measured.write_bytes(left)
    assert limited.calibrate(*arguments).statistics == whole.statistics
    assert f"{measured} is damaged: measuring" in capsys.readouterr().err
    assert measured.read_bytes() == content


def test_an_artifact_survives_the_disk(
    corpus: Corpus, tiny_llama: LoadedModel, tmp_path: Path
) -> None:
    artifact = calibrated(method(), tiny_llama, corpus)
    artifact.save(tmp_path / "artifact")
    loaded = Vocabulary.from_artifact(Artifact.load(tmp_path / "artifact"))
    assert loaded.merged == Vocabulary.from_artifact(artifact).merged
    text = corpus.documents(Split.test)[0].text
    assert loaded.tokenizer is not None
    ordinary = AutoTokenizer.from_pretrained(tmp_path / "artifact" / "tokenizer")
    assert encode(loaded.tokenizer, text) == encode(ordinary, text)


def test_in_input_mode_new_tokens_are_read_and_never_said(
    corpus: Corpus, tiny_llama: LoadedModel
) -> None:
    model, tokenizer = tiny_llama.model, tiny_llama.tokenizer
    adaptivocab = method(mode=Mode.input)
    artifact = calibrated(adaptivocab, tiny_llama, corpus)
    ids = random_inputs(1, 40)
    with torch.inference_mode():
        base = model(ids).logits
        with adaptivocab.apply(model, tokenizer, artifact) as applied:
            assert torch.equal(model(ids).logits, base)
            assert applied.output_tokenizer is tokenizer
            prompt = torch.tensor([encode(applied.tokenizer, corpus.documents(Split.test)[0].text)])
            assert prompt.max() >= base.shape[-1]
            said = generated(tiny_llama, prompt)[prompt.shape[1] :]
    assert max(said) < base.shape[-1]


def test_in_full_mode_the_base_head_is_at_hand(corpus: Corpus, tiny_llama: LoadedModel) -> None:
    model = tiny_llama.model
    artifact = calibrated(method(), tiny_llama, corpus)
    ids = random_inputs(1, 40)
    with torch.inference_mode():
        base = model(ids).logits
        with method().apply(model, tiny_llama.tokenizer, artifact) as applied:
            assert model(ids).logits.shape[-1] > base.shape[-1]
            with applied.base_output():
                assert torch.equal(model(ids).logits, base)


def test_drafts_change_nothing_that_is_generated(corpus: Corpus, tiny_llama: LoadedModel) -> None:
    model, tokenizer = tiny_llama.model, tiny_llama.tokenizer
    adaptivocab = method(mode=Mode.draft, size=100)
    artifact = calibrated(adaptivocab, tiny_llama, corpus)
    ids = encode(tokenizer, "word1 word2 wo")
    expected = generated(tiny_llama, torch.tensor([ids]))
    with adaptivocab.apply(model, tokenizer, artifact) as applied:
        assert isinstance(applied, ProposesDrafts)
        assert not isinstance(applied, ChangesVocabulary)
        section = applied.measured()["vocabulary"]
        assert section["merged"] == 0
        assert set(section["reasons"]) == {"quality_budget", "operating_points", "validation"}
        with Engine(model, tokenizer, slots=1, max_len=64, drafter=applied.drafter) as engine:
            (found,) = engine.generate([ids], max_new_tokens=24)
            assert engine.stats.proposed > 0
    assert ids + found.tokens == expected
    assert generated(tiny_llama, torch.tensor([ids])) == expected


def test_n_grams_that_are_tokens_are_drafted_too(corpus: Corpus, tiny_llama: LoadedModel) -> None:
    model, tokenizer = tiny_llama.model, tiny_llama.tokenizer
    adaptivocab = method(mode=Mode.auto, size=100)
    artifact = calibrated(adaptivocab, tiny_llama, corpus)
    vocabulary = Vocabulary.from_artifact(artifact)
    with adaptivocab.apply(model, tokenizer, artifact) as applied:
        assert isinstance(applied, ProposesDrafts)
        assert isinstance(applied, ChangesVocabulary)
        guessed = set(applied.drafter.counts.tokens)
        assert guessed & set(range(vocabulary.merged.base_size, vocabulary.merged.size))
        assert max(guessed) < model.config.vocab_size
        prompt = "word1 word2 wo"
        engines = (
            Engine(model, applied.tokenizer, slots=1, max_len=64, drafter=drafter)
            for drafter in (None, applied.drafter)
        )
        texts = []
        for engine in engines:
            with engine:
                (found,) = engine.generate([prompt], max_new_tokens=24)
                texts.append(found.text)
        assert texts[0] == texts[1]


def test_text_beyond_the_limit_is_counted_by_nobody(
    corpus: Corpus, tiny_llama: LoadedModel
) -> None:
    """Neither for n-grams nor for drafts, which are counted on the text as it is generated."""
    first, *others = corpus.splits[Split.calibration]
    alone, among = (Corpus("words", [], 0.5, 0.2) for _ in range(2))
    alone.splits |= corpus.splits | {Split.calibration: [first]}
    among.splits |= corpus.splits | {Split.calibration: [first, *others]}
    limit = len(encode(tiny_llama.tokenizer, first.text))
    found = [
        calibrated(method(mode=Mode.draft, mining_tokens=tokens), tiny_llama, text)
        for text, tokens in ((alone, limit), (among, limit), (among, 10 * limit))
    ]
    names = [name for name in found[0].tensors if name.startswith("drafter.")]
    assert names
    assert all(torch.equal(found[0].tensors[name], found[1].tensors[name]) for name in names)
    assert found[0].statistics["drafter"] == found[1].statistics["drafter"]
    assert any(
        found[1].tensors[name].shape != found[2].tensors[name].shape
        or not torch.equal(found[1].tensors[name], found[2].tensors[name])
        for name in names
    )


def test_rows_that_need_no_text_ask_for_none(tiny_llama: LoadedModel) -> None:
    lines = [Document(str(number), f"abab{chr(97 + number)}") for number in range(20)]
    short = Corpus("lines", lines, calibration=0.5, validation=0.2)
    artifact = calibrated(method(rows=Rows.mean), tiny_llama, short)
    assert artifact.statistics["merged"] > 0
    with pytest.raises(TrimtabError, match="calibration split .* smaller window$"):
        calibrated(method(rows=Rows.fitted), tiny_llama, short)
    with pytest.raises(TrimtabError, match="validation split .* max_bpb_increase=null"):
        calibrated(method(rows=Rows.mean, max_bpb_increase=0.1), tiny_llama, short)


def test_a_token_without_a_row_of_the_embedding_is_refused(
    corpus: Corpus, tiny_llama: LoadedModel
) -> None:
    """The rows of n-grams would begin where that token's should be."""
    tiny_llama.model.resize_token_embeddings(258)
    with pytest.raises(MisfitError, match="259 tokens and the model's embedding 258 rows"):
        calibrated(method(), tiny_llama, corpus)
    assert calibrated(method(mode=Mode.draft), tiny_llama, corpus).statistics["drafter"]


def test_a_tokenizer_keeps_all_its_chat_templates(
    corpus: Corpus, tiny_llama: LoadedModel, tmp_path: Path
) -> None:
    templates = {"default": "{{ messages }}", "tool_use": "{{ tools }}"}
    tiny_llama.tokenizer.chat_template = templates
    calibrated(method(), tiny_llama, corpus).save(tmp_path / "artifact")
    loaded = Vocabulary.from_artifact(Artifact.load(tmp_path / "artifact")).tokenizer
    assert loaded is not None
    assert loaded.chat_template == templates


@pytest.mark.parametrize("mode", [Mode.full, Mode.input])
def test_a_tokenizer_is_set_as_the_callers_is_when_applied(
    mode: Mode, corpus: Corpus, tiny_llama: LoadedModel
) -> None:
    """Padding on another side would have transformers' generate continue the padding."""
    tokenizer = tiny_llama.tokenizer
    artifact = calibrated(method(mode=mode), tiny_llama, corpus)
    own: dict[str, Any] = {
        "padding_side": "left",
        "truncation_side": "left",
        "model_max_length": 77,
        "pad_token": tokenizer.eos_token,
        "chat_template": "{{ messages }}",
    }
    for name, value in own.items():
        assert getattr(tokenizer, name) != value
        setattr(tokenizer, name, value)
    with artifact.method.apply(tiny_llama.model, tokenizer, artifact) as applied:
        assert {name: getattr(applied.tokenizer, name) for name in own} == own
        texts = [corpus.documents(Split.test)[0].text[:size] for size in (40, 90)]
        batch = applied.tokenizer(texts, padding=True, return_tensors="pt")
        assert not batch["attention_mask"].all()
        with torch.inference_mode():
            together = tiny_llama.model.generate(**batch, max_new_tokens=4, do_sample=False)
        for row, text in zip(together[:, -4:].tolist(), texts, strict=True):
            ids = applied.tokenizer(text, return_tensors="pt")["input_ids"]
            assert generated(tiny_llama, ids, max_new_tokens=4)[-4:] == row


def test_larosa_on_top_learns_from_the_adapted_text(
    corpus: Corpus, tiny_llama: LoadedModel, tmp_path: Path
) -> None:
    """Without gradients its axes are those of the text's activations, and of nothing else."""
    larosa = LaRoSA(
        basis=Basis.pca,
        transforms=Transforms.all,
        allocation=Allocation.uniform,
        tokens=128,
        window=64,
        probe_tokens=64,
    )
    alone, on_top = (
        artifacts_for(Stack(methods), tiny_llama, corpus, tmp_path, make=True)["larosa"].tensors
        for methods in ([larosa], [method(), larosa])
    )
    axes = [name for name in alone if name.endswith("transform")]
    assert axes
    assert not any(torch.equal(alone[name], on_top[name]) for name in axes)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"size": 0}, "adaptivocab.size=0"),
        ({"max_ngram": 1}, "adaptivocab.max_ngram=1"),
        ({"window": 8}, "adaptivocab.window=8"),
        ({"tokens": 63}, "adaptivocab.tokens=63"),
        ({"max_bpb_increase": -0.1}, "adaptivocab.max_bpb_increase=-0.1"),
        ({"max_bpb_increase": math.inf}, "adaptivocab.max_bpb_increase=inf"),
        ({"max_bpb_increase": math.nan}, "adaptivocab.max_bpb_increase=nan"),
    ],
)
def test_values_out_of_range_are_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        method(**changes)


def test_where_no_temporary_folder_can_be_made_it_is_one_line(
    corpus: Corpus, tiny_llama: LoadedModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    artifact = calibrated(method(rows=Rows.mean), tiny_llama, corpus)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    for call in (
        lambda: calibrated(method(rows=Rows.mean), tiny_llama, corpus),
        lambda: artifact.method.apply(tiny_llama.model, tiny_llama.tokenizer, artifact).__enter__(),
        lambda: artifact.export(tiny_llama.model, tmp_path / "out", tiny_llama.tokenizer),
    ):
        with pytest.raises(TrimtabError, match="temporary folder can be made: No such file.*; set"):
            call()


def test_a_head_with_a_bias_is_refused(tiny_llama: LoadedModel) -> None:
    head = tiny_llama.model.get_output_embeddings()
    head.bias = torch.nn.Parameter(torch.zeros(head.out_features))
    with pytest.raises(MisfitError, match="bias"):
        method().check(tiny_llama.model)
    method(mode=Mode.draft).check(tiny_llama.model)


def test_a_text_without_n_grams_that_can_be_tokens_says_which_can(tiny_llama):
    documents = [Document(f"{number}", f"{number:05d}" * 200) for number in range(8)]
    numbers = Corpus("numbers", documents, calibration=0.5, validation=0.25)
    message = "no n-gram that can be a token, without digits .* calibration text of numbers: use a"
    with pytest.raises(TrimtabError, match=message):
        calibrated(method(), tiny_llama, numbers)
