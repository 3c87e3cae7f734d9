"""Sparse models saved as folders of their own, and loaded without the original's weights."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig

from tests.conftest import random_inputs, tiny
from tests.generation.models import TOKENIZER
from tests.models.contract import draw, stepwise
from trimtab.adaptivocab import AdaptiVocab, Mode, Rows
from trimtab.artifact import Artifact
from trimtab.errors import ArtifactError, MisfitError, TrimtabError
from trimtab.files import sha256_of_json
from trimtab.generation import Engine
from trimtab.larosa import (
    Allocation,
    Basis,
    LaRoSA,
    Precision,
    Prefill,
    RotationScope,
    Selection,
    Transforms,
)
from trimtab.larosa import export as exporting
from trimtab.larosa.export import load_exported
from trimtab.larosa.modules import SparseLinear, SparseNorm
from trimtab.models.fingerprint import fingerprint
from trimtab.models.loading import LoadedModel
from trimtab.models.sources import DType

VOCABULARY = {"tokens": 128, "validation_tokens": 128, "window": 64}
SMALL = {"sparsity": 0.5, "tokens": 512, "window": 64, "probe_tokens": 128}


def calibrated(loaded: LoadedModel, corpus, **settings) -> tuple[LaRoSA, Artifact]:
    method = LaRoSA(**SMALL, **settings)
    return method, method.calibrate(loaded.model, loaded.tokenizer, corpus)


def exported(loaded: LoadedModel, method: LaRoSA, artifact: Artifact, folder: Path) -> Path:
    method.export(loaded.model, loaded.tokenizer, artifact, folder)
    return folder


@pytest.fixture(scope="module")
def folder(corpus, tmp_path_factory) -> Path:
    """Return the folder of an exported model, to be copied before it is changed."""
    loaded = tiny()
    target = tmp_path_factory.mktemp("exported") / "model"
    return exported(loaded, *calibrated(loaded, corpus), target)


@pytest.fixture
def own(folder, tmp_path) -> Path:
    return shutil.copytree(folder, tmp_path / "model")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"dense_prefix": 5},
        {"prefill": Prefill.dense},
        {"selection": Selection.topk, "dense_prefix": 9, "prefill": Prefill.dense},
        {"selection": Selection.capped, "cap": 1.1},
        {"transforms": Transforms.all, "precision": Precision.model},
        {"basis": Basis.none, "fold_norms": True},
        {"residual": RotationScope.site},
        {"residual": RotationScope.model, "transforms": Transforms.none, "fold_norms": True},
    ],
    ids=str,
)
def test_a_loaded_model_generates_what_the_applied_method_does(corpus, tmp_path, settings):
    loaded = draw("tiny-llama", DType.float32, tied=False)
    method, artifact = calibrated(loaded, corpus, **settings)
    found = load_exported(exported(loaded, method, artifact, tmp_path / "model"))
    ids = random_inputs(2, 12)
    options = {
        "do_sample": False, "min_new_tokens": 9, "max_new_tokens": 9, "pad_token_id": 0,
        "return_dict_in_generate": True, "output_logits": True,
    }  # fmt: skip
    with method.apply(loaded.model, loaded.tokenizer, artifact):
        expected = loaded.model(ids).logits, stepwise(loaded.model, ids, 7)
        text = loaded.model.generate(ids, **options)
    for logits, other in zip((found(ids).logits, stepwise(found, ids, 7)), expected, strict=True):
        assert torch.equal(logits, other)
    again = found.generate(ids, **options)
    assert torch.equal(again.sequences, text.sequences)
    assert torch.equal(torch.stack(again.logits), torch.stack(text.logits))


def test_the_engine_runs_a_loaded_model_as_it_runs_the_applied_one(corpus, tmp_path):
    loaded = draw("tiny-llama", DType.float32, tied=True)
    method, artifact = calibrated(loaded, corpus, dense_prefix=2)
    found = load_exported(exported(loaded, method, artifact, tmp_path / "model"))
    prompts = [[5, 6, 7], [*range(40, 51)]]

    def texts(model) -> list[list[int]]:
        with Engine(model, TOKENIZER, slots=2, max_len=64) as engine:
            return [output.tokens for output in engine.generate(prompts, max_new_tokens=9)]

    with method.apply(loaded.model, loaded.tokenizer, artifact):
        expected = texts(loaded.model)
    assert texts(found) == expected


def test_no_weight_of_the_original_is_in_the_folder_or_read(corpus, tmp_path, monkeypatch):
    loaded = draw("tiny-llama", DType.float32, tied=True)
    method, artifact = calibrated(loaded, corpus, transforms=Transforms.all)
    target = exported(loaded, method, artifact, tmp_path / "model")
    with safe_open(target / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names  # tied
    assert {f"model.layers.1.input_layernorm.{what}" for what in (
        "norm.weight", "transform", "transform_scale")} <= names  # fmt: skip
    assert "model.layers.1.input_layernorm.weight" not in names
    original = loaded.model.model.layers[1].mlp.down_proj.weight
    with safe_open(target / "model.safetensors", "pt") as file:
        saved = file.get_tensor("model.layers.1.mlp.down_proj.weight")
    assert saved.shape == original.T.shape
    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", None)
    found = load_exported(target)
    assert not found.training
    assert not any(part.requires_grad or part.is_meta for part in found.parameters())
    head, embeddings = found.get_output_embeddings(), found.get_input_embeddings()
    assert head.weight is embeddings.weight
    kinds = [type(module) for module in found.modules()]
    assert (kinds.count(SparseLinear), kinds.count(SparseNorm)) == (7 * 3, 2 * 3)


def test_configuration_and_tokenizer_are_those_of_the_model(corpus, tmp_path):
    loaded = tiny()
    loaded.model.generation_config.max_new_tokens = 17
    target = exported(loaded, *calibrated(loaded, corpus), tmp_path / "model")
    found = load_exported(str(target))
    assert type(found) is type(loaded.model)
    assert found.generation_config.max_new_tokens == 17
    assert found.dtype == loaded.model.dtype
    different = {"architectures", "_name_or_path", "dtype"}
    configs = [found.config.to_dict(), loaded.model.config.to_dict()]
    for name in different:
        for config in configs:
            config.pop(name, None)
    assert configs[0] == configs[1]
    assert loaded.model.config.architectures is None  # the caller's own is left alone
    text = "some text"
    assert AutoTokenizer.from_pretrained(target)(text).input_ids == TOKENIZER(text).input_ids
    description = json.loads((target / "trimtab.json").read_text())
    assert (description["schema"], description["method"]) == (1, "larosa")
    assert description["settings"]["sparsity"] == 0.5


@pytest.mark.parametrize("shape", ["tiny-llama", "tiny-gpt2"])
def test_transformers_refuses_the_weights_whose_modules_it_does_not_make(corpus, tmp_path, shape):
    loaded = draw(shape, DType.float32, tied=True)
    target = exported(loaded, *calibrated(loaded, corpus), tmp_path / "model")
    with pytest.raises(Exception, match=r"trimtab\.load_model"):
        AutoModelForCausalLM.from_pretrained(target)


def test_exporting_leaves_the_model_as_it_was(corpus, tmp_path):
    loaded = draw("tiny-llama", DType.float32, tied=True)
    method, artifact = calibrated(loaded, corpus, residual=RotationScope.layer, dense_prefix=1)
    before = {name: part.clone() for name, part in loaded.model.state_dict().items()}
    exported(loaded, method, artifact, tmp_path / "model")
    after = loaded.model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], part) for name, part in before.items())
    assert not any(module._forward_pre_hooks for module in loaded.model.modules())


def test_large_models_are_saved_in_several_files(corpus, tmp_path, monkeypatch):
    loaded = tiny()
    method, artifact = calibrated(loaded, corpus)
    monkeypatch.setattr(exporting, "SHARD_BYTES", 100_000)
    target = exported(loaded, method, artifact, tmp_path / "model")
    files = sorted(target.glob("*.safetensors"))
    assert len(files) > 3
    index = json.loads((target / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {path.name for path in files}
    ids = random_inputs(1, 12)
    with method.apply(loaded.model, loaded.tokenizer, artifact):
        expected = loaded.model(ids).logits
    assert torch.equal(load_exported(target)(ids).logits, expected)
    files[1].unlink()
    with pytest.raises(ArtifactError, match=f"{files[1].name} is missing"):
        load_exported(target)


def test_a_loaded_model_does_not_depend_on_its_files(own):
    found = load_exported(own)
    ids = random_inputs(1, 12)
    expected = found(ids).logits
    (own / "model.safetensors").write_bytes(bytes(1000))
    assert torch.equal(found(ids).logits, expected)


@pytest.mark.parametrize("precision", Precision)
def test_a_loaded_model_is_cast(corpus, tmp_path, precision):
    loaded = tiny()
    method, artifact = calibrated(loaded, corpus, transforms=Transforms.all, precision=precision)
    folder = exported(loaded, method, artifact, tmp_path / "model")
    ids = random_inputs(1, 12)
    expected = load_exported(folder)(ids).logits
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        stored = {"int8": (torch.int8, torch.float32), "model": (dtype,)}[precision]
        for cast in ("to", "type"):
            found = getattr(load_exported(folder), cast)(dtype)
            logits = found(ids).logits
            assert logits.dtype == dtype
            assert (logits - expected).abs().max() < 0.2 * expected.abs().max()
            for norm in (one for one in found.modules() if isinstance(one, SparseNorm)):
                parts = norm.transform, norm.transform_scale
                assert tuple(part.dtype for part in parts if part is not None) == stored


def test_a_sparse_model_is_not_made_sparse_again(own, corpus):
    found = load_exported(own)
    with pytest.raises(MisfitError, match="sparse already"):
        LaRoSA(**SMALL).calibrate(found, TOKENIZER, corpus)


@pytest.mark.parametrize("mode", [Mode.auto, Mode.full, Mode.input])
@pytest.mark.parametrize("rows", [Rows.fitted, Rows.distilled])
def test_rows_that_take_gradients_are_refused_before_anything_is_mined(
    own, corpus, rows, mode, monkeypatch
):
    monkeypatch.setattr("trimtab.adaptivocab.calibrate.tokenize", None)
    method = AdaptiVocab(mode=mode, rows=rows, **VOCABULARY)
    with pytest.raises(MisfitError, match=f"^adaptivocab.rows={rows} is fitted by gradients"):
        method.calibrate(load_exported(own), TOKENIZER, corpus)


@pytest.mark.parametrize(
    "settings", [{"rows": Rows.mean}, {"rows": Rows.exponential}, {"mode": Mode.draft}]
)
def test_a_vocabulary_without_gradients_is_made_for_a_loaded_model(own, corpus, settings):
    found = load_exported(own)
    method = AdaptiVocab(size=20, **{"mode": Mode.full, "max_bpb_increase": None} | settings,
                         **VOCABULARY)  # fmt: skip
    artifact = method.calibrate(found, TOKENIZER, corpus)
    with method.apply(found, TOKENIZER, artifact):
        assert found(random_inputs(1, 12)).logits.isfinite().all()


def test_a_folder_that_holds_something_is_refused_and_an_empty_one_is_not(corpus, tmp_path):
    loaded = tiny()
    method, artifact = calibrated(loaded, corpus, allocation=Allocation.steepest)
    full, empty, file = tmp_path / "full", tmp_path / "empty", tmp_path / "file"
    full.mkdir()
    empty.mkdir()
    for path in (full / "note", file):
        path.write_text("something")
    for target in (full, file):
        with pytest.raises(TrimtabError, match=f"{target} exists and is not an empty folder"):
            exported(loaded, method, artifact, target)
    assert [path.name for path in full.iterdir()] == ["note"]
    load_exported(exported(loaded, method, artifact, empty))


def test_a_head_of_another_size_than_the_embedding_is_refused(corpus, tmp_path):
    """No folder that transformers' configuration describes can hold such a model."""
    loaded = tiny()
    vocabulary = AdaptiVocab(mode=Mode.input, size=20, max_bpb_increase=None, **VOCABULARY)
    merged = vocabulary.calibrate(loaded.model, loaded.tokenizer, corpus)
    with vocabulary.apply(loaded.model, loaded.tokenizer, merged) as applied:
        adapted = LoadedModel(
            loaded.model, applied.tokenizer, "a", fingerprint(loaded.model), True, {}
        )
        method, artifact = calibrated(adapted, corpus)
        with pytest.raises(MisfitError, match="embedding has 323 rows and its head 320"):
            exported(adapted, method, artifact, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_export_leaves_nothing(corpus, tmp_path, monkeypatch):
    loaded = tiny()
    method, artifact = calibrated(loaded, corpus)

    def fail(*arguments) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(exporting, "write_json", fail)
    with pytest.raises(OSError, match="no space left"):
        exported(loaded, method, artifact, tmp_path / "parent" / "model")
    assert list((tmp_path / "parent").iterdir()) == []


def test_a_configuration_that_transformers_does_not_save_is_said_to_be_that(
    monkeypatch, corpus, tmp_path
):
    loaded = tiny()
    method, artifact = calibrated(loaded, corpus)

    def validate(config: PreTrainedConfig) -> None:
        raise StrictDataclassClassValidationError("validate_heads", ValueError("five heads"))

    with (
        monkeypatch.context() as patched,
        pytest.raises(TrimtabError, match="cannot save the model's configuration: .*: five heads$"),
    ):
        patched.setattr(type(loaded.model.config), "validate", validate)
        exported(loaded, method, artifact, tmp_path / "model")
    loaded.model.generation_config.temperature = -1.0
    with pytest.raises(TrimtabError, match="cannot save the model's configuration: .*temperature"):
        exported(loaded, method, artifact, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_is_to_return_its_attention_weights_is_saved_without_that(corpus, tmp_path):
    loaded = tiny()
    method, artifact = calibrated(loaded, corpus)
    loaded.model.config._output_attentions = True  # as a checkpoint's config.json says it
    model = load_exported(exported(loaded, method, artifact, tmp_path / "model"))
    assert (model.config.output_attentions, loaded.model.config.output_attentions) == (False, True)


def test_an_artifact_of_another_model_or_method_is_refused(corpus, tmp_path):
    loaded = tiny()
    method, artifact = calibrated(loaded, corpus)
    with pytest.raises(ArtifactError, match="belongs to another model"):
        exported(tiny(seed=1), method, artifact, tmp_path / "model")
    other = replace(artifact, key=replace(artifact.key, method="adaptivocab"))
    with pytest.raises(ArtifactError, match="is one of adaptivocab, not of larosa"):
        exported(loaded, method, other, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_what_is_missing_is_named(own, name):
    (own / name).unlink()
    with pytest.raises(ArtifactError, match=f"{name} is missing: copy the folder again"):
        load_exported(own)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "trimtab.json"])
@pytest.mark.parametrize("how", ["truncated", "edited"])
def test_what_is_damaged_is_named(own, name, how):
    path = own / name
    content = path.read_bytes()
    edited = content.replace(b"64", b"65", 1) if b"64" in content[:5000] else content[:-1] + b"\1"
    path.write_bytes(content[:-10] if how == "truncated" else edited)
    assert path.read_bytes() != content
    with pytest.raises(ArtifactError, match=f"{name} is damaged, truncated or edited"):
        load_exported(own)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is incomplete or damaged"),
        ("[]", "holds no JSON object"),
        ('{"num_return_sequences": 4}', "asks for what cannot be"),
        ('{"watermarking_config": 5}', "asks for what cannot be"),
    ],
)
def test_a_generation_config_that_cannot_be_used_is_named(own, content, said):
    (own / "generation_config.json").write_text(content)
    with pytest.raises(ArtifactError, match=f"^{own}: generation_config.json {said}"):
        load_exported(own)


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match=r"nowhere: there is no trimtab\.json"):
        load_exported(tmp_path / "nowhere")
    loaded = tiny()
    loaded.model.save_pretrained(tmp_path / "model")
    with pytest.raises(ArtifactError, match=r"model: there is no trimtab\.json"):
        load_exported(tmp_path / "model")


def rewrite(folder: Path, **changes) -> None:
    """Change the description, with the checksum that goes with it."""
    path = folder / "trimtab.json"
    content = json.loads(path.read_text())
    del content["content_sha256"]
    content |= changes
    path.write_text(json.dumps({**content, "content_sha256": sha256_of_json(content)}))


def described(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings and the plan that the description has."""
    content = json.loads((folder / "trimtab.json").read_text())
    return content["settings"], content["plan"]


def identified(folder: Path) -> str:
    return fingerprint(load_exported(folder))


@pytest.mark.parametrize(
    "changes",
    [
        {"selection": "topk"},
        {"selection": "capped", "cap": 1.2},
        {"dense_prefix": 3},
        {"prefill": "dense"},
    ],
    ids=str,
)
def test_another_selection_is_another_model(own, changes):
    settings, _ = described(own)
    assert settings | changes != settings
    before = identified(own)
    rewrite(own, settings=settings | changes)
    assert identified(own) != before


@pytest.mark.parametrize(
    ("selection", "part"),
    [("threshold", "threshold"), ("topk", "sparsity"), ("capped", "sparsity")],
)
@pytest.mark.parametrize("site", ["h2", "h3"])
def test_another_sparsity_of_one_site_is_another_model(own, selection, part, site):
    settings, plan = described(own)
    rewrite(own, settings=settings | {"selection": selection, "cap": 1.0})
    before = identified(own)
    plan["sites"][site][1][part] *= 1.5
    rewrite(own, plan=plan)
    assert identified(own) != before


def test_a_setting_that_the_selection_does_not_read_makes_no_other_model(own):
    settings, plan = described(own)
    assert settings["selection"] == "threshold"
    before = identified(own)
    plan["sites"]["h3"][1]["sparsity"] *= 1.5
    rewrite(own, plan=plan, settings=settings | {"cap": 1.7})
    assert identified(own) == before


def test_a_model_stays_the_same_when_it_has_run_is_copied_or_loaded_again(own):
    rewrite(own, settings=described(own)[0] | {"selection": "capped", "dense_prefix": 2})
    found = load_exported(own)
    before = fingerprint(found)
    found(random_inputs(2, 12))
    with Engine(found, TOKENIZER, slots=2, max_len=64) as engine:
        engine.generate([[5, 6, 7]], max_new_tokens=3)
    for same in (found, copy.deepcopy(found), found.to("cpu"), load_exported(own)):
        assert fingerprint(same) == before


def test_an_artifact_of_one_sparse_model_is_refused_by_another(own, corpus):
    method = AdaptiVocab(mode=Mode.draft, size=20, **VOCABULARY)
    first = load_exported(own)
    artifact = method.calibrate(first, TOKENIZER, corpus)
    with method.apply(first, TOKENIZER, artifact):
        pass
    rewrite(own, settings=described(own)[0] | {"prefill": "dense"})
    with pytest.raises(ArtifactError, match="belongs to another model"):
        method.apply(load_exported(own), TOKENIZER, artifact)


@pytest.mark.parametrize("changes", [{"schema": 99}, {"method": "other"}])
def test_another_schema_or_method_is_refused(own, changes):
    rewrite(own, **changes)
    with pytest.raises(ArtifactError, match="this version reads 1 of larosa: export the artifact"):
        load_exported(own)


def test_an_architecture_that_is_built_otherwise_is_refused(own, monkeypatch):
    read = exporting.load_file

    def lacking(path: Path, device: str) -> dict[str, torch.Tensor]:
        tensors = read(path, device=device)
        del tensors["model.norm.weight"]
        return tensors

    monkeypatch.setattr(exporting, "load_file", lacking)
    message = r"builds LlamaForCausalLM otherwise than version .* \(no model\.norm\.weight\)"
    with pytest.raises(ArtifactError, match=message):
        load_exported(own)
