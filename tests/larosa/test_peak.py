"""What calibrating and applying take beside a model: some layers' worth, however many it has."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.conftest import random_inputs, tiny
from tests.counting import Peak
from trimtab.larosa import LaRoSA, RotationScope, Transforms
from trimtab.larosa.calibrate import Calibrator
from trimtab.models.fingerprint import fingerprint
from trimtab.models.loading import LoadedModel
from trimtab.models.sources import DType

SMALL = {"tokens": 256, "window": 64, "probe_tokens": 64}
DEPTHS = 2, 6


def deep(layers: int, dtype: DType) -> LoadedModel:
    loaded = tiny(dtype=dtype)
    config = copy.deepcopy(loaded.model.config)
    config.num_hidden_layers = layers
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=loaded.model.dtype)
    model.eval().requires_grad_(False)
    return replace(loaded, model=model, fingerprint=fingerprint(model))


@pytest.mark.parametrize("residual", [RotationScope.none, RotationScope.layer])
def test_statistics_of_one_layer_at_a_time_are_in_memory(tmp_path, residual):
    found = []
    for layers in DEPTHS:
        loaded = deep(layers, DType.float32)
        method = LaRoSA(transforms=Transforms.all, residual=residual, **SMALL)
        calibrator = Calibrator(
            loaded.model, random_inputs(4, 64), tmp_path / str(layers), method
        )  # fmt: skip
        with Peak(loaded.model.parameters()) as peak:
            calibrator.measure()
        found.append(peak.most)
    assert found[0] == found[1] > 0


@pytest.mark.parametrize("dtype", [DType.float32, DType.bfloat16])
def test_applying_takes_less_than_two_layers_in_float64_beside_model_and_artifact(corpus, dtype):
    found = []
    for layers in DEPTHS:
        loaded = deep(layers, dtype)
        method = LaRoSA(transforms=Transforms.all, **SMALL)
        artifact = method.calibrate(loaded.model, loaded.tokenizer, corpus)
        applied = method.apply(loaded.model, loaded.tokenizer, artifact, known=loaded.fingerprint)
        with Peak([*loaded.model.parameters(), *artifact.tensors.values()]) as peak, applied:
            pass
        found.append(peak.most)
    layer = sum(8 * one.numel() for one in loaded.model.model.layers[0].parameters())
    assert found[1] == pytest.approx(found[0], rel=0.01)  # buffers of a few bytes a layer
    assert found[1] < 2 * layer
