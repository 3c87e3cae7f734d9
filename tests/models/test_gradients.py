"""Gradients in float16, small and large ones, and the attention that they go through."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from tests.adaptivocab.rows.test_gradient import NEW, merged_by_pairs
from tests.conftest import drawn, random_inputs, tiny
from trimtab.adaptivocab.rows import gradient
from trimtab.adaptivocab.rows.gradient import match_hidden_states
from trimtab.larosa import passes
from trimtab.larosa.checkpoint import Checkpoint
from trimtab.larosa.passes import Passes
from trimtab.models.gradients import gradients, repeatable


@pytest.mark.parametrize("size", [2.0**-60, 2.0**-20, 1.0, 2.0**40])
@pytest.mark.parametrize("growth", [2.0**-8, 1.0, 2.0**11])
def test_they_are_those_of_float32_however_small_and_however_they_grow(size, growth):
    weight, at_output = drawn(8, 8) * growth, drawn(4, 8) * size
    narrow = drawn(4, 8).half().requires_grad_()
    (found,) = gradients(narrow @ weight.half(), [narrow], at_output)
    expected = at_output @ weight.T
    assert found.dtype == torch.float32
    assert (found - expected).norm() < 2e-3 * expected.norm()


def test_where_none_arrive_there_are_none():
    narrow = drawn(4, 8).half().requires_grad_()
    (found,) = gradients(narrow * 2, [narrow], torch.zeros(4, 8))
    assert not found.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_in_other_dtypes_they_are_pytorch_s_own(dtype):
    wide, at_output = drawn(4, 8).to(dtype).requires_grad_(), drawn(4, 8)
    output = wide.tanh()
    (expected,) = torch.autograd.grad(output, wide, at_output.to(dtype), retain_graph=True)
    (found,) = gradients(output, [wide], at_output)
    assert torch.equal(found, expected)


def test_on_a_gpu_attention_is_the_plain_one_and_elsewhere_what_it_was():
    """Fused attention adds gradients up in another order every time."""
    fused = {"flash": True, "mem_efficient": True, "cudnn": True, "math": True}

    def enabled() -> dict[str, bool]:
        return {name: getattr(torch.backends.cuda, f"{name}_sdp_enabled")() for name in fused}

    before = enabled()
    with repeatable(torch.device("cuda", 1)):
        assert enabled() == {**dict.fromkeys(fused, False), "math": True}
    assert enabled() == before
    with repeatable(torch.device("cpu")):
        assert enabled() == before


def of_sites(model: PreTrainedModel, folder: Path) -> None:
    found = Passes(model, random_inputs(3, 12), 2, Checkpoint(folder), 1)
    found.moments()
    found.fisher()


def of_rows(model: PreTrainedModel, folder: Path) -> None:
    weight = model.get_input_embeddings().weight
    passages = [merged_by_pairs(text, len(weight)) for text in random_inputs(2, 16)]
    match_hidden_states(model, weight[:NEW].clone(), passages, None)


@pytest.mark.parametrize(("run", "module"), [(of_sites, passes), (of_rows, gradient)])
def test_whatever_takes_gradients_through_attention_has_the_plain_one(
    monkeypatch, tmp_path, run, module
):
    asked, fused = [], []

    def on_a_gpu(device: torch.device):
        asked.append(device)
        return repeatable(torch.device("cuda"))

    def note(*_: object) -> None:
        if torch.is_grad_enabled():
            fused.append(torch.backends.cuda.flash_sdp_enabled())

    model = tiny().model.requires_grad_(False)
    for layer in model.model.layers:
        layer.self_attn.register_forward_pre_hook(note)
    monkeypatch.setattr(module, "repeatable", on_a_gpu)
    run(model, tmp_path)
    assert set(asked) == {torch.device("cpu")}
    assert set(fused) == {False}
