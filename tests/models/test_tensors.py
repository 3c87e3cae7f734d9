"""Tensors that a model has and its config does not make, and tensors that are one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from transformers import PreTrainedModel

import trimtab
from tests.conftest import SHAPES, tiny
from tests.models.edited import check_refused
from trimtab.adaptivocab import AdaptiVocab
from trimtab.errors import MisfitError
from trimtab.larosa import LaRoSA
from trimtab.models.fingerprint import fingerprint
from trimtab.models.saving import require_as_config
from trimtab.models.tensors import tensors_unlike_config

IDS = torch.arange(3, 30)[None]
SPARSE = LaRoSA(tokens=512, window=64, probe_tokens=128)
WORDS = AdaptiVocab(mode="full", size=8, max_bpb_increase=None, rows="mean", tokens=512, window=64)
DOWN = "model.layers.0.mlp.down_proj"
Change = Callable[[PreTrainedModel], str]


def pruned(model: PreTrainedModel) -> str:
    prune.l1_unstructured(model.get_submodule(DOWN), "weight", 0.5)
    return f"{DOWN}.weight: nothing"


def parametrized(model: PreTrainedModel) -> str:
    parametrizations.weight_norm(model.get_submodule(DOWN))
    return rf"{DOWN}(\.weight)?: "


def with_bias(model: PreTrainedModel) -> str:
    model.get_submodule(DOWN).bias = nn.Parameter(torch.ones(64))
    return rf"{DOWN}\.bias: of shape \[64\], .* makes it nothing"


def with_head_bias(model: PreTrainedModel) -> str:
    model.lm_head.bias = nn.Parameter(torch.ones(model.config.vocab_size))
    return "lm_head.bias: of shape"


def narrower(model: PreTrainedModel) -> str:
    mlp = model.model.layers[0].mlp
    for linear in (mlp.gate_proj, mlp.up_proj):
        linear.weight = nn.Parameter(linear.weight[:144].detach().clone())
    mlp.down_proj.weight = nn.Parameter(mlp.down_proj.weight[:, :144].detach().clone())
    return r"model.layers.0.mlp.gate_proj.weight: of shape \[144, 64\], .* of shape \[160, 64\]"


def with_buffer(model: PreTrainedModel) -> str:
    model.model.norm.register_buffer("counts", torch.ones(3))
    return r"model.norm.counts: of shape \[3\]"


def shared(model: PreTrainedModel, first: int = 0) -> str:
    model.model.layers[2].mlp = model.model.layers[first].mlp
    name = "mlp.gate_proj.weight"
    return f"model.layers.2.{name}: the same as model.layers.{first}.{name}, .* of its own"


CHANGES: list[Change] = [
    pruned, parametrized, with_bias, with_head_bias, narrower, with_buffer, shared,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_tensors_that_the_config_does_not_make_are_not_exported(change):
    model = tiny().model
    require_as_config(model)
    told = change(model)
    with pytest.raises(MisfitError, match=f"^{told}") as said:
        require_as_config(model)
    assert "\n" not in str(said.value)


@pytest.mark.parametrize("shape", SHAPES)
def test_models_have_the_tensors_that_their_configs_make(shape):
    assert tensors_unlike_config(tiny(shape).model) == {}


@pytest.mark.parametrize(("method", "change"), [(WORDS, narrower), (SPARSE, with_head_bias)])
def test_no_folder_is_written_that_cannot_be_loaded(method, change, corpus, tiny_llama, tmp_path):
    check_refused(method, tiny_llama, corpus, tmp_path / "out", change, "")


@torch.no_grad()
def test_a_sparse_model_has_the_shapes_that_its_folder_has(corpus, tiny_llama, tmp_path):
    model, tokenizer = tiny_llama.model, tiny_llama.tokenizer
    narrower(model)
    with_bias(model)
    artifact = SPARSE.calibrate(model, tokenizer, corpus)
    artifact.export(model, tmp_path / "sparse", tokenizer)
    with trimtab.apply(model, tokenizer, [artifact]):
        expected = model(IDS).logits
    assert torch.equal(trimtab.load_model(tmp_path / "sparse")(IDS).logits, expected)


def test_a_sparse_model_is_still_said_not_to_be_saved(corpus, tiny_llama, tmp_path):
    model, tokenizer = tiny_llama.model, tiny_llama.tokenizer
    SPARSE.calibrate(model, tokenizer, corpus).export(model, tmp_path / "sparse", tokenizer)
    sparse = trimtab.load_model(tmp_path / "sparse")
    artifact = WORDS.calibrate(sparse, tokenizer, corpus)
    with pytest.raises(MisfitError, match="transformers cannot save a sparse model"):
        artifact.export(sparse, tmp_path / "words", tokenizer)


@pytest.mark.parametrize("part", ["lm_head", "model.embed_tokens"])
def test_no_rows_are_added_to_a_weight_that_every_pass_makes(part, corpus, tiny_llama):
    model, tokenizer = tiny_llama.model, tiny_llama.tokenizer
    prune.l1_unstructured(model.get_submodule(part), "weight", 0.5)
    with pytest.raises(MisfitError, match="is made of others in every pass.*prune.remove"):
        WORDS.calibrate(model, tokenizer, corpus)
    prune.remove(model.get_submodule(part), "weight")
    WORDS.calibrate(model, tokenizer, corpus)


def transposed(model: PreTrainedModel) -> None:
    """Have the projections of two layers be each other's transpose in the same memory."""
    first, second = (model.model.layers[index].self_attn for index in (0, 2))
    second.o_proj.weight = nn.Parameter(first.o_proj.weight.detach().T)


def same(model: PreTrainedModel) -> None:
    first, second = (model.model.layers[index].self_attn for index in (0, 2))
    second.o_proj.weight = first.o_proj.weight


@pytest.mark.parametrize(
    "changes",
    [(shared, lambda model: shared(model, 1)), (transposed, same)],
    ids=["modules", "views"],
)
@torch.no_grad()
def test_it_counts_which_tensors_are_one(changes: tuple[Any, Any]):
    models = [tiny().model, tiny().model]
    for change, model in zip(changes, models, strict=True):
        change(model)
    first, second = (model(IDS).logits for model in models)
    assert (first - second).abs().max() > 1e-4
    assert fingerprint(models[0]) != fingerprint(models[1])
