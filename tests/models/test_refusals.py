"""What a model refuses while methods are at work on it, and what it does not."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM

import trimtab
from tests.conftest import tiny
from tests.models.test_state import METHODS
from trimtab.errors import MisfitError

CONVERSIONS = {
    "half": lambda model: model.half(),
    "to(dtype)": lambda model: model.to(torch.bfloat16),
    "double": lambda model: model.double(),
    "to(device)": lambda model: model.to("meta"),
}


@pytest.mark.parametrize("method", ["larosa", "exponential"])
def test_a_changed_model_is_neither_saved_nor_cast_nor_moved(method, corpus, tmp_path):
    loaded = tiny()
    artifact = trimtab.calibrate(loaded.model, loaded.tokenizer, METHODS[method], corpus)
    model, name = loaded.model, artifact.key.method
    before, attributes = copy.deepcopy(model.state_dict()), set(vars(model))
    with trimtab.apply(model, loaded.tokenizer, [artifact]) as optimized:
        expected = optimized.generate(["word1"], max_new_tokens=4)[0].tokens
        duplicate = copy.deepcopy(model)
        for one in (model, duplicate):
            for part in (one, one.base_model):
                with pytest.raises(MisfitError, match=rf"{name} is at work .* Artifact\.export"):
                    part.save_pretrained(tmp_path / "saved")
            for convert in CONVERSIONS.values():
                with pytest.raises(MisfitError, match=rf"{name} is at work .* torch\.float32 on"):
                    convert(one)
            one.to("cpu").float().to(one.device, one.dtype)  # as pipelines do
            for call in (one.half, lambda one=one: one.save_pretrained(tmp_path / "saved")):
                with pytest.raises(MisfitError, match=r"or was when this copy was made.* copying"):
                    call()
        assert optimized.generate(["word1"], max_new_tokens=4)[0].tokens == expected
    assert not (tmp_path / "saved").exists()
    assert set(vars(model)) == attributes
    assert "save_pretrained" not in vars(model.base_model)
    assert all(torch.equal(before[key], one) for key, one in model.state_dict().items())
    assert model.half().dtype == torch.float16


@pytest.mark.parametrize("method", ["larosa", "exponential"])
def test_a_changed_model_keeps_its_rows(method, corpus):
    loaded = tiny("tiny-mistral")
    artifact = trimtab.calibrate(loaded.model, loaded.tokenizer, METHODS[method], corpus)
    model, name = loaded.model, artifact.key.method
    before = copy.deepcopy(model.state_dict())
    with trimtab.apply(model, loaded.tokenizer, [artifact]):
        for part in (model, model.base_model):
            with pytest.raises(MisfitError, match=rf"{name} is at work .* this copy .* the rows"):
                part.resize_token_embeddings(400)
    assert all(torch.equal(before[key], one) for key, one in model.state_dict().items())
    assert model.resize_token_embeddings(400).weight.shape[0] == 400


def test_two_methods_on_a_model_refuse_until_both_have_left(corpus):
    loaded = tiny()
    words = trimtab.calibrate(loaded.model, loaded.tokenizer, METHODS["exponential"], corpus)
    outer = trimtab.apply(loaded.model, loaded.tokenizer, [words]).__enter__()
    sparse = trimtab.calibrate(loaded.model, outer.tokenizer, METHODS["larosa"], corpus)
    inner = trimtab.apply(loaded.model, outer.tokenizer, [sparse]).__enter__()
    for leaving in (outer, inner):
        with pytest.raises(MisfitError, match="larosa is at work"):
            loaded.model.half()
        leaving.__exit__(None, None, None)
    loaded.model.half()


@pytest.mark.parametrize("method", ["larosa", "exponential"])
def test_no_part_of_a_changed_model_is_cast_or_moved(method, corpus):
    loaded = tiny()
    artifact = trimtab.calibrate(loaded.model, loaded.tokenizer, METHODS[method], corpus)
    model, name = loaded.model, artifact.key.method
    before, held = copy.deepcopy(model.state_dict()), list(model.modules())
    attributes = [set(vars(part)) for part in held]
    with trimtab.apply(model, loaded.tokenizer, [artifact]) as optimized:
        expected = optimized.generate(["word1"], max_new_tokens=4)[0].tokens
        copied = copy.deepcopy(model.model.layers[1])
        for part in (*held, *model.modules(), *copied.modules()):
            own = [*part.parameters(), *part.buffers()]
            for convert in CONVERSIONS.values() if own else ():
                with pytest.raises(MisfitError, match=rf"{name} is at work .* was to become torch"):
                    convert(part)
            part.to("cpu").float()
        assert optimized.generate(["word1"], max_new_tokens=4)[0].tokens == expected
    assert all(torch.equal(before[key], one) for key, one in model.state_dict().items())
    assert [set(vars(part)) for part in held] == attributes
    assert model.model.layers[0].half().mlp.down_proj.weight.dtype == torch.float16


def test_weights_that_are_put_aside_come_back_whatever_is_done_to_their_place(corpus):
    loaded = tiny()
    artifact = trimtab.calibrate(loaded.model, loaded.tokenizer, METHODS["larosa"], corpus)
    weight = loaded.model.model.layers[0].mlp.down_proj.weight
    before = weight.clone()
    with trimtab.apply(loaded.model, loaded.tokenizer, [artifact]):
        weight.data = weight.data.half()
    assert torch.equal(weight, before)
    assert weight.dtype == before.dtype


@pytest.mark.parametrize("method", ["vattention", "draft"])
def test_a_model_that_nothing_has_changed_is_saved_as_it_is(method, corpus, tmp_path):
    loaded = tiny()
    one = trimtab.VAttention()
    if method == "draft":
        one = trimtab.calibrate(loaded.model, loaded.tokenizer, METHODS["draft"], corpus)
    with trimtab.apply(loaded.model, loaded.tokenizer, [one]) as optimized:
        with optimized.engine(slots=1):
            loaded.model.save_pretrained(tmp_path)
        loaded.model.to(torch.bfloat16)
        assert len(optimized.generate(["word1"], max_new_tokens=4)[0].tokens) == 4
    found = AutoModelForCausalLM.from_pretrained(tmp_path)
    state = tiny().model.state_dict()
    assert all(torch.equal(state[key], value) for key, value in found.state_dict().items())
    assert found.config._attn_implementation == tiny().model.config._attn_implementation


def test_a_sparse_model_of_its_own_is_not_saved_by_transformers(corpus, tmp_path):
    loaded = tiny()
    sparse = trimtab.calibrate(loaded.model, loaded.tokenizer, METHODS["larosa"], corpus)
    sparse.export(loaded.model, tmp_path / "sparse")
    model = trimtab.load_model(tmp_path / "sparse")
    for part in (model, model.base_model):
        with pytest.raises(MisfitError, match="cannot save a sparse model: copy the folder"):
            part.save_pretrained(tmp_path / "again")
    assert not (tmp_path / "again").exists()
    assert model.half().dtype == torch.float16
