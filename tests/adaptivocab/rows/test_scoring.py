"""What a model says about a text, against the model asked for one token at a time."""

from __future__ import annotations

import math

import pytest
import torch

from tests.adaptivocab.rows.cases import START, next_probabilities, passage, sharp
from tests.conftest import SHAPES, tiny
from trimtab.adaptivocab.rows.scoring import capped, logits_of, predict, score
from trimtab.models.facts import final_softcap

every = pytest.mark.parametrize("name", SHAPES)
starts = pytest.mark.parametrize("start", [START, None])


@every
@starts
def test_nats_are_those_of_the_model_given_the_text_before(name, start):
    model, base = sharp(name), passage(0, 12).base
    nats = score(model, base, start).nats
    assert nats.dtype == torch.float64
    for position, token in enumerate(base.tolist()):
        probability = next_probabilities(model, base[:position].tolist(), start)[token]
        assert float(nats[position]) == pytest.approx(-math.log(probability), rel=1e-4, abs=1e-5)


def test_the_first_token_of_a_text_read_from_nothing_may_be_any():
    assert float(score(sharp(), torch.tensor([5, 6]), None).nats[0]) == pytest.approx(
        math.log(320), rel=1e-6
    )


@every
@starts
def test_hidden_states_lead_to_the_same_expectations_again(name, start):
    model, base = sharp(name), passage(0).base
    logits, hidden = predict(model, base, start)
    assert logits.shape == (60, 320)
    assert torch.equal(score(model, base, start).hidden, hidden)
    torch.testing.assert_close(logits_of(model, hidden), logits)


def test_no_hook_stays_behind():
    model = sharp()
    head = model.get_output_embeddings()
    with pytest.raises(IndexError):
        predict(model, torch.tensor([10**6]), None)
    predict(model, torch.tensor([1]), None)
    assert not head._forward_pre_hooks


def test_a_bound_of_the_logits_is_the_models_own():
    bounds = {name: final_softcap(tiny(name).model.config) for name in SHAPES}
    assert bounds.pop("tiny-gemma2") == 10.0
    assert set(bounds.values()) == {None}
    logits = torch.linspace(-100, 100, 9)
    assert capped(logits, None) is logits
    torch.testing.assert_close(capped(logits, 30.0), 30 * torch.tanh(logits / 30))
