import copy
import json
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

import trimtab
from trimtab.adaptivocab import AdaptiVocab
from trimtab.artifact import DESCRIPTION, TENSORS, Artifact, ArtifactKey
from trimtab.errors import ArtifactError
from trimtab.larosa import LaRoSA

FILE = "tokenizer/tokenizer.json"


def artifact(**changes) -> Artifact:
    parts = {
        "method": "larosa",
        "config": {"sparsity": 0.4},
        "model_fingerprint": "a" * 64,
        "tokenizer_fingerprint": "t" * 64,
        "corpus_digest": "c" * 64,
    }
    return Artifact(
        ArtifactKey(**{**parts, **changes}),
        model={"architecture": "LlamaForCausalLM"},
        corpus={"name": "words", "documents": {"calibration": ["d"]}},
        parameters={"plan": {"sites": [0.25]}},
        statistics={"tokens": 3, "energy": 0.1 + 0.2},
        run={"wall_seconds": 1.5},
        tensors={"transposed": torch.arange(6.0).reshape(2, 3).T, "scalar": torch.tensor(0.5)},
        files={FILE: b"{}\n"},
    )


def test_what_is_saved_is_what_is_loaded(tmp_path):
    saved = artifact()
    saved.save(tmp_path / "a")
    loaded = Artifact.load(tmp_path / "a")
    assert (loaded.key, loaded.model, loaded.corpus) == (saved.key, saved.model, saved.corpus)
    assert (loaded.parameters, loaded.statistics) == (saved.parameters, saved.statistics)
    assert loaded.run == saved.run
    assert loaded.files == saved.files
    assert loaded.tensors.keys() == saved.tensors.keys()
    assert all(torch.equal(loaded.tensors[name], saved.tensors[name]) for name in saved.tensors)


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "other"},
        {"config": {"sparsity": 0.5}},
        {"model_fingerprint": "b" * 64},
        {"tokenizer_fingerprint": "b" * 64},
        {"corpus_digest": "b" * 64},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_the_digest_depends_on_every_part_of_the_key(changes):
    assert artifact(**changes).key.digest != artifact().key.digest
    assert artifact().key.digest == artifact().key.digest


@pytest.mark.parametrize("name", [DESCRIPTION, TENSORS, FILE])
@pytest.mark.parametrize("damage", ["truncated", "one byte changed", "empty", "deleted"])
def test_a_damaged_file_is_refused(tmp_path, name, damage):
    artifact().save(tmp_path / "a")
    path = tmp_path / "a" / name
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "one byte changed":
        position = content.rindex(b"1.5") if name == DESCRIPTION else len(content) - 1
        content[position] ^= 1
        path.write_bytes(content)
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
    with pytest.raises(ArtifactError, match=r"is damaged: .*calibrate\.py .*force=true"):
        Artifact.load(tmp_path / "a")
    with pytest.raises(ArtifactError, match="holds a damaged artifact: .* replace=True"):
        artifact().save(tmp_path / "a")
    artifact().save(tmp_path / "a", replace=True)
    assert Artifact.load(tmp_path / "a").run == artifact().run


@pytest.mark.parametrize("content", ["[]", "{}", "3", "null", '{"content_sha256": "", "x": NaN}'])
def test_a_description_that_is_none_is_damaged(tmp_path, content):
    artifact().save(tmp_path / "a")
    (tmp_path / "a" / DESCRIPTION).write_text(content)
    with pytest.raises(ArtifactError, match=rf"{DESCRIPTION} is damaged"):
        Artifact.load(tmp_path / "a")


def test_where_no_folder_is_there_is_no_artifact(tmp_path):
    with pytest.raises(ArtifactError, match=r"no artifact here; make it with cal.*, or in Python"):
        Artifact.load(tmp_path / "a")


def test_another_schema_version_is_refused_by_number(tmp_path):
    artifact().save(tmp_path / "a")
    path = tmp_path / "a" / DESCRIPTION
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 99}))
    with pytest.raises(ArtifactError, match="schema version 99, this version reads 8"):
        Artifact.load(tmp_path / "a")


def test_another_model_is_refused():
    with pytest.raises(
        ArtifactError, match=r"belongs to another model.*aaaaaaaaaaaa.*bbbbbbbbbbbb"
    ):
        artifact().verify(artifact(model_fingerprint="b" * 64).key)


def test_another_configuration_is_refused():
    with pytest.raises(ArtifactError, match="another configuration, tokenizer or corpus"):
        artifact().verify(artifact(config={"sparsity": 0.5}).key)
    artifact().verify(artifact().key)


def test_saving_again_keeps_the_first_unless_told_to_replace_it(tmp_path):
    first, second = artifact(), artifact()
    second.run = {"wall_seconds": 9.0}
    first.save(tmp_path / "a")
    second.save(tmp_path / "a")
    assert Artifact.load(tmp_path / "a").run == first.run
    second.save(tmp_path / "a", replace=True)
    assert Artifact.load(tmp_path / "a").run == second.run
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_failed_save_leaves_nothing(tmp_path):
    broken = replace(artifact(), statistics={"tokens": float("nan")})  # no JSON value
    with pytest.raises(ValueError, match="not JSON compliant"):
        broken.save(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_its_method_has_the_settings_it_was_calibrated_with():
    made = artifact(config=LaRoSA(sparsity=0.25, selection="topk").config()).method
    assert made == LaRoSA(sparsity=0.25, selection="topk")
    with pytest.raises(ArtifactError, match="of the method other, which has no file .* adap"):
        _ = artifact(method="other").method


def test_a_method_may_need_no_tensors(tmp_path):
    empty = replace(artifact(), tensors={}, files={})
    empty.save(tmp_path / "a")
    assert Artifact.load(tmp_path / "a").tensors == {}


EDITS: dict[str, tuple[Callable[[Artifact], object], str]] = {
    "a parameter removed": (lambda one: one.parameters.pop("plan"), "parameters"),
    "a value inside": (lambda one: one.parameters["plan"]["sites"].append(1.0), "parameters"),
    "other parameters": (lambda one: setattr(one, "parameters", {}), "parameters"),
    "a tensor removed": (lambda one: one.tensors.pop("scalar"), r"tensors\['scalar'\]"),
    "all removed": (lambda one: one.tensors.clear(), r"tensors\['\w+'\] and 1 more"),
    "another": (lambda one: one.tensors.update(x=torch.ones(1)), r"tensors\['x'\]"),
    "no tensor": (lambda one: one.tensors.update(scalar=None), r"tensors\['scalar'\]"),
    "another shape": (
        lambda one: one.tensors.update(transposed=one.tensors["transposed"][:2]),
        r"tensors\['transposed'\]",
    ),
    "another dtype": (
        lambda one: one.tensors.update(scalar=one.tensors["scalar"].half()),
        r"tensors\['scalar'\]",
    ),
    "in place": (lambda one: one.tensors["transposed"].neg_(), r"tensors\['transposed'\]"),
    "a file": (lambda one: one.files.update({FILE: b"{}"}), rf"files\['{FILE}'\]"),
    "a statistic": (lambda one: one.statistics.pop("tokens"), "statistics"),
    "a setting": (lambda one: one.key.config.update(sparsity=0.9), "key"),
}


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("name", EDITS)
def test_what_was_edited_in_memory_is_named_and_not_saved(tmp_path, name, loaded):
    own = artifact()
    own.require_unedited()
    if loaded:
        own.save(tmp_path / "a")
        own = Artifact.load(tmp_path / "a")
    edit, part = EDITS[name]
    edit(own)
    with pytest.raises(ArtifactError, match=f"was edited in memory, {part}: load it again"):
        own.save(tmp_path / "b")
    assert not (tmp_path / "b").exists()
    replace(own).require_unedited()


@pytest.mark.parametrize(
    ("method", "edits"),
    [
        (
            LaRoSA(tokens=512, window=64, probe_tokens=128),
            [lambda one: one.parameters.clear(), lambda one: one.tensors.clear()],
        ),
        (
            AdaptiVocab(mode="full", size=8, max_bpb_increase=None, rows="mean"),
            [lambda one: one.tensors.pop("merged"), lambda one: one.files.popitem()],
        ),
    ],
    ids=lambda one: getattr(one, "name", ""),
)
def test_what_was_edited_in_memory_is_neither_applied_nor_exported(
    tmp_path, corpus, tiny_llama, method, edits
):
    model, tokenizer = tiny_llama.model, tiny_llama.tokenizer
    made = method.calibrate(model, tokenizer, corpus)
    for edit in edits:
        edited = copy.deepcopy(made)
        edit(edited)
        for use in (
            lambda one=edited: trimtab.apply(model, tokenizer, [one]).__enter__(),
            lambda one=edited: method.apply(model, tokenizer, one),
            lambda one=edited: one.export(model, tmp_path / "out", tokenizer),
        ):
            with pytest.raises(ArtifactError, match="was edited in memory"):
                use()
    assert not (tmp_path / "out").exists()
    with trimtab.apply(model, tokenizer, [copy.deepcopy(made)]):
        pass
