"""Weights in huge pages: the same numbers, in memory of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import trimtab
from tests.generation.models import TOKENIZER, model_of
from trimtab import backing

TRANSPARENT = Path("/sys/kernel/mm/transparent_hugepage/enabled")
MAPPINGS = Path("/proc/self/maps")
METHODS = [
    trimtab.LaRoSA(tokens=512, probe_tokens=256, window=64),
    trimtab.AdaptiVocab(size=4),
]


def numbers(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def places(model: nn.Module) -> dict[str, tuple[int, tuple[int, ...]]]:
    return {name: (one.data_ptr(), one.stride()) for name, one in model.named_parameters()}


@pytest.mark.parametrize("variant", ["llama", "gemma3", "gpt2", "phi3"])
def test_packed_weights_are_the_same_numbers_elsewhere(variant, monkeypatch):
    monkeypatch.setattr(backing, "PART", 2**18)
    model = model_of(variant)
    before, old = numbers(model), places(model)
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert tied
    backing.pack(model)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    for name, (address, strides) in places(model).items():
        assert address != old[name][0]
        assert address % backing.ALIGNMENT == 0
        assert strides == old[name][1]
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    storages = {one.untyped_storage().data_ptr(): one for one in model.parameters()}
    sizes = [one.untyped_storage().nbytes() for one in storages.values()]
    largest = max(one.nbytes for one in model.parameters())
    assert 1 < len(sizes) < len(list(model.parameters())) / 2
    assert max(sizes) <= max(largest, 2**18) + 64 * backing.ALIGNMENT


def test_memory_that_weights_share_moves_as_one():
    class Sharing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            whole = torch.arange(81.0)[1:]
            self.first = nn.Parameter(whole[:20])
            self.second = nn.Parameter(whole[10:40].reshape(5, 6))
            self.apart = nn.Parameter(whole[40:50].reshape(5, 2).T)
            self.left, self.right = map(nn.Parameter, whole[50:62].reshape(2, 6).split([2, 4], 1))
            self.strided = nn.Parameter(whole[62:80].reshape(3, 6)[:, 0])
            self.register_buffer("empty", torch.empty(0))

    model = Sharing()
    before, old = numbers(model), places(model)
    backing.pack(model)
    assert {name for name, place in places(model).items() if place == old[name]} == {"strided"}
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
    assert all(now[1] == old[name][1] for name, now in places(model).items())
    assert model.right.data_ptr() == model.left.data_ptr() + model.left[0].nbytes
    with torch.no_grad():
        model.first[15] = -1
    assert model.second[0, 5] == -1


def test_what_is_more_than_numbers_of_this_process_stays_where_it_is():
    model = nn.Linear(3, 4)
    shared = torch.ones(5).share_memory_()
    model.shared = nn.Parameter(shared)
    model.register_buffer("sparse", torch.eye(3).to_sparse())
    model.register_buffer("elsewhere", torch.ones(3, device="meta"))
    old = model.weight.data_ptr()
    backing.pack(model)
    assert model.weight.data_ptr() != old
    shared[2] = 7
    assert model.shared[2] == 7


def test_weights_leave_the_file_that_they_are_mapped_from(tmp_path):
    save_file({"weight": torch.arange(2.0**16)}, tmp_path / "file")
    model = nn.Module()
    model.weight = nn.Parameter(load_file(tmp_path / "file")["weight"])
    assert str(tmp_path) in MAPPINGS.read_text()
    backing.pack(model)
    assert str(tmp_path) not in MAPPINGS.read_text()
    assert torch.equal(model.weight, torch.arange(2.0**16))


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_method_is_undone_exactly_after_its_model_was_packed(method):
    model = model_of()
    texts = [" ".join(f"word{(n * 7 + i * i) % 97}" for i in range(300)) for n in range(12)]
    artifact = trimtab.calibrate(model, TOKENIZER, method, texts)
    before = numbers(model)
    prompt = torch.arange(9)[None]
    with trimtab.apply(model, TOKENIZER, [artifact]):
        expected = model(prompt).logits
        backing.pack(model)
        assert torch.equal(model(prompt).logits, expected)
    found = model.state_dict()
    assert found.keys() == before.keys()
    assert all(torch.equal(found[name], one) for name, one in before.items())


@pytest.mark.parametrize("name", ["Backing({})", "{}"])
@pytest.mark.parametrize("choice", backing.Backing)
def test_what_is_allocated_lies_in_huge_pages_or_does_not(choice, name):
    if "[never]" in TRANSPARENT.read_text("ascii"):
        pytest.skip("the system has no huge pages")
    code = (
        "from trimtab.backing import *\n"
        f"use_pages({name.format(repr(str(choice)))})\n"
        "import torch\n"
        "one = torch.ones(2**24)\n"
        "print(huge_page_bytes() / one.nbytes)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    share = float(done.stdout)
    assert share > 0.5 if choice is backing.Backing.huge else share < 0.1


@pytest.mark.parametrize("choice", ["huge_pages", "", None, 0, trimtab.LaRoSA])
def test_a_backing_that_there_is_not_is_refused(choice, monkeypatch):
    monkeypatch.delenv(backing.TORCH_HUGE_PAGES, raising=False)
    with pytest.raises(trimtab.ConfigError, match="^backing=.*: expected huge or as_loaded"):
        backing.use_pages(choice)
    assert backing.TORCH_HUGE_PAGES not in os.environ
