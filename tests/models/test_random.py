"""Models with random weights."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.conftest import SHAPES
from trimtab.models.random import random_model


@pytest.mark.parametrize("name", SHAPES)
def test_weights_are_those_of_the_seed_and_nobody_elses_random_numbers_move(name):
    """Of `torch.manual_seed`, as anyone would draw them, though that is one for all threads."""
    before = torch.get_rng_state()
    found, _ = random_model(name, 5, torch.device("cpu"), torch.bfloat16)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    expected = AutoModelForCausalLM.from_config(found.config, dtype=torch.bfloat16).state_dict()
    assert found.state_dict().keys() == expected.keys()
    assert all(torch.equal(one, expected[key]) for key, one in found.state_dict().items())
