"""A model adapted by AdaptiVocab as an ordinary folder, for programs that know nothing of it."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from tests.adaptivocab.test_method import calibrated, method
from tests.adaptivocab.tokenizers import DOCUMENTS, TEXTS, base
from tests.conftest import Command, tiny
from trimtab.adaptivocab import Mode, Rows
from trimtab.adaptivocab.export import BASE_TOKENIZER, MAP, main, ordinary
from trimtab.adaptivocab.vocabulary import Vocabulary
from trimtab.artifact import Artifact
from trimtab.calibration import calibrate
from trimtab.corpus import Corpus, Document, Split, encode
from trimtab.errors import ArtifactError, MisfitError, TrimtabError
from trimtab.models.fingerprint import fingerprint
from trimtab.models.loading import LoadedModel
from trimtab.models.shapes import shapes

OUTSIDE = """
import json, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "trimtab":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, text = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
ids = tokenizer(text, add_special_tokens=False)["input_ids"]
with torch.inference_mode():
    logits = model(torch.tensor([ids])).logits
print(json.dumps([ids, logits[0, -1].tolist()]))
"""


@pytest.mark.parametrize(
    "name", ["tiny-llama", "tiny-qwen2", "tiny-qwen3", "tiny-gpt2", "tiny-opt"]
)
def test_an_exported_folder_needs_nothing_of_ours(
    name: str, corpus: Corpus, command: Command, tmp_path: Path
) -> None:
    loaded = tiny(name)
    artifact, folder = calibrate(loaded, method(), corpus, tmp_path)
    out = tmp_path / "exported"
    method().export(loaded.model, loaded.tokenizer, Artifact.load(folder), out)
    text = corpus.documents(Split.test)[0].text[:200]
    process = command("-c", OUTSIDE, str(out), text)
    assert process.returncode == 0, process.stderr
    ids, logits = json.loads(process.stdout.splitlines()[-1])
    with method().apply(loaded.model, loaded.tokenizer, artifact) as applied:
        assert encode(applied.tokenizer, text) == ids
        with torch.inference_mode():
            ours = loaded.model(torch.tensor([ids])).logits[0, -1]
    torch.testing.assert_close(torch.tensor(logits), ours)
    ngrams = json.loads((out / MAP).read_text("utf-8"))
    base: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(out / BASE_TOKENIZER)
    expanded = [one for token in ids for one in ngrams.get(str(token), [token])]
    assert expanded == encode(base, text)


def test_a_model_that_is_to_return_its_attention_weights_is_saved_without_that(
    corpus: Corpus, tmp_path: Path
) -> None:
    loaded = tiny()
    artifact = calibrated(method(), loaded, corpus)
    loaded.model.config._output_attentions = True  # as a checkpoint's config.json says it
    method().export(loaded.model, loaded.tokenizer, artifact, tmp_path / "out")
    saved = AutoConfig.from_pretrained(tmp_path / "out")
    assert (saved.output_attentions, loaded.model.config.output_attentions) == (False, True)


def exported(name: str, kind: str, folder: Path, **shape: Any) -> tuple[Artifact, LoadedModel]:
    """Calibrate a model with a tokenizer of a kind on prose, and export it."""
    tokenizer = base(kind)
    shape = shapes()[name] | {"vocab_size": len(tokenizer)} | shape
    config = AutoConfig.for_model(**shape, pad_token_id=None)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
    loaded = LoadedModel(model, tokenizer, name, fingerprint(model), True, {})
    texts = [Document(str(number), text[:3000]) for number, text in enumerate(DOCUMENTS)]
    prose = Corpus("topics", texts, calibration=0.5, validation=0.2)
    artifact = calibrated(method(rows=Rows.mean, size=100), loaded, prose)
    artifact.method.export(loaded.model, loaded.tokenizer, artifact, folder)
    return artifact, loaded


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("tiny-llama", "llama3"),
        ("tiny-llama", "sentencepiece"),
        ("tiny-qwen2", "qwen2"),
        ("tiny-qwen3", "qwen2"),
        ("tiny-gpt2", "gpt2"),
        ("tiny-gemma2", "sentencepiece"),
        ("tiny-phi3", "sentencepiece"),
    ],
)
def test_others_read_an_exported_tokenizer_as_we_do(name: str, kind: str, tmp_path: Path) -> None:
    artifact, loaded = exported(name, kind, tmp_path / "out")
    found = AutoTokenizer.from_pretrained(tmp_path / "out")
    ours = Vocabulary.from_artifact(artifact).tokenizer
    assert ours is not None
    for text in [*TEXTS, *DOCUMENTS[:4]]:
        assert encode(found, text) == encode(ours, text)
    long = DOCUMENTS[0]
    assert len(encode(found, long)) < 0.97 * len(encode(loaded.tokenizer, long))


def test_a_family_whose_tokenizer_is_replaced_is_not_exported(tmp_path: Path) -> None:
    """A Qwen2 with a sliding window is no Llama."""
    with pytest.raises(MisfitError, match="as Qwen2Tokenizer, which has pre_tokenizer"):
        exported("tiny-qwen2", "qwen2", tmp_path / "out", use_sliding_window=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [False, True])
def test_a_qwen2_is_the_same_model_as_a_llama(dtype: torch.dtype, tied: bool) -> None:
    config = AutoConfig.for_model(**shapes()["tiny-qwen2"] | {"tie_word_embeddings": tied})
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(weight)
    with tempfile.TemporaryDirectory() as folder:
        ordinary(model).save_pretrained(folder)
        loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert type(loaded).__name__ == "LlamaForCausalLM"
    assert loaded.dtype == dtype
    ids = torch.arange(40)[None]
    with torch.inference_mode():
        assert torch.equal(model(ids).logits, loaded(ids).logits)


def test_what_an_ordinary_folder_cannot_hold_is_refused(
    corpus: Corpus, tiny_llama: LoadedModel, tmp_path: Path
) -> None:
    model, tokenizer, out = tiny_llama.model, tiny_llama.tokenizer, tmp_path / "out"
    for changes, reason in (
        ({"mode": Mode.draft}, "only drafts, so the model it makes is the unmodified one"),
        ({"mode": Mode.input}, "mode=input"),
    ):
        adaptivocab = method(**changes)
        artifact = calibrated(adaptivocab, tiny_llama, corpus)
        with pytest.raises(MisfitError, match=reason):
            adaptivocab.export(model, tokenizer, artifact, out)
    artifact = calibrated(method(), tiny_llama, corpus)
    none = {"base_size": artifact.tensors["base_size"], "merged": artifact.tensors["merged"][:0]}
    with pytest.raises(MisfitError, match="found no n-gram within its quality budget"):
        method().export(model, tokenizer, replace(artifact, tensors=none, files={}), out)
    with pytest.raises(ArtifactError, match="another model"):
        method().export(tiny(seed=1).model, tokenizer, artifact, out)
    assert not out.exists()
    model.generation_config.temperature, model.generation_config.do_sample = 0.5, False
    with pytest.raises(TrimtabError, match="cannot save the model's configuration: .*temp") as said:
        method().export(model, tokenizer, artifact, out)
    assert "\n" not in str(said.value)
    assert list(tmp_path.iterdir()) == []
    out.write_text("a file")
    with pytest.raises(TrimtabError, match=f"{out} exists and is not an empty folder"):
        method().export(model, tokenizer, artifact, out)
    foreign = replace(artifact, key=replace(artifact.key, method="larosa"))
    with pytest.raises(ArtifactError, match="is one of larosa, not of adaptivocab"):
        method().export(model, tokenizer, foreign, tmp_path / "other")


def test_a_wrapped_tokenizer_is_not_exported(tmp_path: Path) -> None:
    with pytest.raises(MisfitError, match="cannot be written as a tokenizer.json"):
        exported("tiny-llama", "unigram", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-qwen2"])
def test_a_model_without_a_generation_config_is_exported_to_an_empty_folder(
    name: str, corpus: Corpus, tmp_path: Path
) -> None:
    loaded = tiny(name)
    artifact = calibrated(method(), loaded, corpus)
    loaded.model.generation_config = None
    method().export(loaded.model, loaded.tokenizer, artifact, tmp_path)
    assert loaded.model.generation_config is None
    found = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert found.generation_config.eos_token_id == loaded.model.config.eos_token_id
    ids = torch.arange(40)[None]
    with torch.inference_mode(), method().apply(loaded.model, loaded.tokenizer, artifact):
        assert torch.equal(found(ids).logits, loaded.model(ids).logits)


def test_an_exported_tokenizer_is_set_as_the_callers_is(
    corpus: Corpus, tiny_llama: LoadedModel, tmp_path: Path
) -> None:
    artifact = calibrated(method(), tiny_llama, corpus)
    tiny_llama.tokenizer.pad_token = tiny_llama.tokenizer.eos_token
    tiny_llama.tokenizer.chat_template = "{{ messages }}"
    tiny_llama.tokenizer.model_max_length = 77
    method().export(tiny_llama.model, tiny_llama.tokenizer, artifact, tmp_path / "exported")
    found = AutoTokenizer.from_pretrained(tmp_path / "exported")
    assert found.pad_token == tiny_llama.tokenizer.eos_token
    assert (found.chat_template, found.model_max_length) == ("{{ messages }}", 77)


def test_export_is_a_command(
    corpus: Corpus, tiny_llama: LoadedModel, command: Command, tmp_path: Path
) -> None:
    _, folder = calibrate(tiny_llama, method(), corpus, tmp_path)
    arguments = "-m", "trimtab.adaptivocab.export", str(folder), str(tmp_path / "o")
    process = command(*arguments)
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines()[-1] == str(tmp_path / "o")
    assert (tmp_path / "o" / MAP).is_file()
    again = command(*arguments)
    assert again.returncode == 1
    assert "exists and is not an empty folder" in again.stderr
    assert "Traceback" not in again.stderr
    below = tmp_path / "o" / MAP / "x"  # of a file
    inside = command(*arguments[:-1], str(below))
    assert inside.returncode == 1
    assert inside.stderr.splitlines()[-1].startswith(f"export: error: {below}: ")
    assert "Errno" not in inside.stderr


def test_export_reads_the_model_from_where_it_moved(
    corpus: Corpus,
    tiny_llama: LoadedModel,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An artifact made in Python does not say where its model is."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, seed in (("right", 0), ("wrong", 1)):
        tiny(seed=seed).model.save_pretrained(tmp_path / name)
        tiny_llama.tokenizer.save_pretrained(tmp_path / name)
    calibrated(method(), tiny_llama, corpus).save(tmp_path / "artifact")
    arguments = ["~/artifact", "~/out"]
    for more, error in (
        ([], "--model=None: is required"),
        (["--model", "~/wrong"], "name the right one with --model"),
    ):
        with pytest.raises(SystemExit, match="1"):
            main([*arguments, *more])
        assert error in capsys.readouterr().err
    main([*arguments, "--model", "~/right"])
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "out")
    assert (tmp_path / "out" / MAP).is_file()
