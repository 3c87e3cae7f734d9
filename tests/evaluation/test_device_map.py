"""Models that `model.device_map` spreads over devices, measured."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers.integrations.accelerate
from accelerate import dispatch_model

from tests.conftest import tiny
from tests.evaluation.test_refusals import STACKS, measure
from trimtab.errors import MisfitError
from trimtab.evaluation.memory import device_names
from trimtab.generation.limits import check_model
from trimtab.models.loading import load_model
from trimtab.models.sources import DType, HubModel

FEW = 300_000  # bytes, half of the model


@pytest.fixture
def source(tmp_path: Path) -> HubModel:
    whole = tiny()
    whole.model.save_pretrained(tmp_path)
    whole.tokenizer.save_pretrained(tmp_path)
    return HubModel(device="auto", dtype=DType.float32, name=str(tmp_path), device_map="auto")


@pytest.mark.parametrize("stack", STACKS, ids=["baseline", "vattention"])
def test_a_dispatched_model_is_measured_beside_its_copy(corpus, stack):
    """With accelerate's hooks on every module, as on a model that lies on several devices."""
    model = tiny().model
    dispatch_model(model, {name: "cpu" for name, _ in model.named_children()}, force_hooks=True)
    found = measure(model, corpus, stack)
    assert found["device"] == "cpu"
    assert found["speed"]["paired"]
    assert found["quality"]["exact_match"]["estimate"] == 1
    assert found["quality"]["bits_per_byte"]["difference"]["estimate"] == 0


def test_a_map_that_puts_all_on_one_device_is_the_model_itself(source):
    loaded = load_model(source)
    assert loaded.fingerprint == tiny().fingerprint
    assert device_names(loaded.model) == str(loaded.model.device)


def test_a_model_that_has_to_be_offloaded_is_refused(source, monkeypatch):
    monkeypatch.setattr(
        transformers.integrations.accelerate, "get_balanced_memory", lambda *_, **__: {"cpu": FEW}
    )
    with pytest.raises(MisfitError, match=r"offloaded by model\.device_map, .*; load it whole"):
        load_model(source)


def test_devices_are_named_with_their_shares_and_the_engine_takes_one():
    model = tiny().model
    model.model.layers[0].to("meta")
    held = sum(one.nbytes for one in model.model.layers[0].parameters())
    share = held / sum(one.nbytes for one in model.parameters())
    assert device_names(model) == f"cpu ({1 - share:.0%}) and meta ({share:.0%})"
    with pytest.raises(MisfitError, match="the model lies on 2 devices and a KV cache on one"):
        check_model(model, max_len=64)
