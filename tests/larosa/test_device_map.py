"""Models that accelerate has spread over devices, as ``model.device_map`` loads them."""

import pytest
import torch
from accelerate import cpu_offload, dispatch_model

from tests.conftest import random_inputs, tiny
from trimtab.errors import MisfitError
from trimtab.larosa import Count, LaRoSA, RotationScope, Transforms


def test_a_dispatched_model_calibrates_and_runs_as_the_same_model_does(corpus):
    """With accelerate's hooks on every module, which replace the modules' forward."""
    method = LaRoSA(
        sparsity=0.5, residual=RotationScope.group, group=2, transforms=Transforms.all, tokens=512,
        window=64, probe_tokens=256,
    )  # fmt: skip
    plain, spread = tiny(), tiny()
    devices = {name: "cpu" for name, _ in spread.model.named_children()}
    dispatch_model(spread.model, devices, force_hooks=True)
    assert hasattr(spread.model.model, "_hf_hook")
    found = []
    for loaded in (plain, spread):
        artifact = method.calibrate(loaded.model, loaded.tokenizer, corpus)
        with method.apply(loaded.model, loaded.tokenizer, artifact):
            found.append((artifact, loaded.model(random_inputs(2, 20)).logits))
    (expected, logits), (artifact, others) = found
    assert artifact.statistics == expected.statistics
    assert torch.equal(logits, others)


def test_an_offloaded_model_is_refused(corpus):
    loaded = tiny()
    cpu_offload(loaded.model, execution_device="cpu")
    with pytest.raises(MisfitError, match=r"offloaded by model\.device_map"):
        LaRoSA(sparsity=0.0, count=Count.nominal).check(loaded.model)
