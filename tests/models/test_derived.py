"""Tensors that are in no checkpoint, where a caller has changed them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.conftest import SHAPES, tiny
from tests.generation.models import Recorder, engine_for
from tests.models.contract import assert_equal, draw
from tests.models.edited import check_refused
from trimtab.adaptivocab import AdaptiVocab
from trimtab.larosa import LaRoSA
from trimtab.models.derived import unlike_config
from trimtab.models.fingerprint import fingerprint
from trimtab.models.sources import DType

ROPE: dict[str, dict[str, Any]] = {
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 64},
    "longrope": {
        "short_factor": [1.0] * 8, "long_factor": [2.0] * 8,
        "original_max_position_embeddings": 64,
    },
}  # fmt: skip


def read(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return the tensors that are in no checkpoint and that passes over short texts read.

    LongRoPE, which the tiny Phi-3 has, copies the original frequencies in every pass.
    """
    rope: Any = getattr(model.config, "rope_parameters", None) or {}
    copied, saved = rope.get("rope_type") == "longrope", model.state_dict()
    return {
        name: one
        for name, one in model.named_buffers()
        if name not in saved and ("original" in name) is copied
    }


CASES = [(shape, name) for shape in SHAPES for name in read(tiny(shape).model)]


@pytest.mark.parametrize(("shape", "name"), CASES)
def test_a_buffer_changed_by_hand_is_what_decodes_and_makes_another_model(shape, name):
    model = draw(shape, DType.float32, tied=True).model
    before, prompt, token = fingerprint(model), [5, 70, 8, 100, 3], 9

    def decoded() -> Tensor:
        recorder = Recorder()
        engine.generate([prompt], max_new_tokens=2, given=[[token]], logits_processors=recorder)
        return recorder.of(0)[1]

    with engine_for(model) as engine:
        first = decoded()
        read(model)[name].mul_(0.3)
        found = decoded()
        assert engine.decode_step.startswith("C++")
    expected = model(torch.tensor([[*prompt, token]])).logits[0, -1]
    assert_equal(found, expected)
    with pytest.raises(AssertionError):
        assert_equal(first, expected)
    assert fingerprint(model) != before
    assert [*unlike_config(model)] == [name]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_cast_or_rounding_in_the_last_bit_is_no_change_by_hand(shape, dtype):
    model = tiny(shape).model
    for buffer in read(model).values():
        buffer.copy_(torch.nextafter(buffer, torch.tensor(torch.inf)))
    assert not unlike_config(model)
    assert not unlike_config(model.to(dtype))


@pytest.mark.parametrize("kind", ROPE)
def test_frequencies_that_follow_the_length_of_a_text_are_no_change_by_hand(kind):
    drawn = tiny().model
    config = copy.deepcopy(drawn.config)
    config.max_position_embeddings = 128
    config.rope_parameters = {"rope_type": kind, "rope_theta": 1e4, **ROPE[kind]}
    model = type(drawn)(config).eval()
    before = fingerprint(model)
    model(torch.zeros(1, 200, dtype=torch.int64))
    assert fingerprint(model) == before
    model.model.rotary_emb.original_inv_freq.mul_(1.5)
    assert fingerprint(model) != before


@pytest.mark.parametrize(
    "method",
    [
        LaRoSA(tokens=512, window=64, probe_tokens=128),
        AdaptiVocab(mode="full", size=8, max_bpb_increase=None, rows="mean"),
    ],
    ids=lambda one: one.name,
)
def test_what_no_folder_holds_is_neither_applied_by_an_older_artifact_nor_exported(
    method, corpus, tiny_llama, tmp_path
):
    def slow_down(model: PreTrainedModel) -> str:
        model.model.rotary_emb.inv_freq.mul_(0.5)
        return "model.rotary_emb.inv_freq"

    folder = tmp_path / "out"
    check_refused(method, tiny_llama, corpus, folder, slow_down, " is not what .* config")
