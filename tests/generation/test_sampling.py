"""From which distribution tokens are drawn, and with which seed."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import LogitsProcessorList

from tests.generation.models import engine_for, model_of, prompts_of
from trimtab.errors import TrimtabError
from trimtab.generation import Sampling
from trimtab.generation.sampling import Sampler, seed_of

CPU = torch.device("cpu")
LOGITS = [1.0, 0.4, -0.5, 2.0, 0.0, -3.0]


def distribution(sampling: Sampling) -> np.ndarray:
    """Return the probabilities, computed from the definitions."""
    weights = np.exp(np.array(LOGITS) / sampling.temperature)
    order = np.argsort(-weights)
    if sampling.top_k is not None:
        weights[order[sampling.top_k :]] = 0
    weights /= weights.sum()
    if sampling.top_p is not None:
        before = np.cumsum(weights[order]) - weights[order]
        weights[order[before >= sampling.top_p]] = 0
    return weights / weights.sum()


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.0),
        Sampling(temperature=0.5, seed=1),
        Sampling(temperature=1.5, top_k=3),
        Sampling(temperature=1.0, top_p=0.8),
        Sampling(temperature=2.0, top_k=4, top_p=0.7, seed=5),
    ],
    ids=str,
)
def test_tokens_are_drawn_from_the_distribution(sampling):
    sampler = Sampler(sampling, 0, CPU)
    logits = torch.tensor([LOGITS])
    draws = [sampler([], logits) for _ in range(3000)]
    counts = np.bincount(draws, minlength=len(LOGITS))
    expected = distribution(sampling) * len(draws)
    assert not counts[expected == 0].any()
    inside = expected > 0
    assert chisquare(counts[inside], expected[inside]).pvalue > 1e-3


def test_numbers_of_every_kind_are_read_as_pythons_own():
    given = Sampling(temperature=2, top_k=np.int64(3), top_p=np.float32(0.5), seed=np.uint8(7))
    assert given == Sampling(temperature=2.0, top_k=3, top_p=0.5, seed=7)
    kinds = [type(getattr(given, name)) for name in ("temperature", "top_k", "top_p", "seed")]
    assert kinds == [float, int, float, int]
    assert 0 <= Sampler(given, 0, CPU)([], torch.tensor([LOGITS])) < len(LOGITS)


def test_narrow_temperatures_are_read_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Sampling(temperature=np.float16(0.5)).temperature == 0.5


def test_the_first_of_equal_logits_is_taken_where_nothing_is_drawn():
    assert Sampler(Sampling(), 0, CPU)([], torch.tensor([[0.0, 2.0, 2.0]])) == 1


def draws(seed: int, index: int) -> list[int]:
    sampler = Sampler(Sampling(temperature=1.0, seed=seed), index, CPU)
    return [sampler([], torch.zeros(1, 1000)) for _ in range(8)]


@pytest.mark.parametrize("size", [5, 97, 4096])
def test_what_is_drawn_is_what_torch_multinomial_draws(size):
    sampling = Sampling(temperature=0.7, top_k=size // 2, seed=11)
    sampler, other = Sampler(sampling, 3, CPU), torch.Generator().manual_seed(seed_of(sampling, 3))
    for _ in range(50):
        logits = torch.randn(1, size)
        expected = sampling.warpers()(None, logits).softmax(-1).multinomial(1, generator=other)
        assert sampler([], logits) == expected


def test_draws_depend_on_seed_and_index():
    assert draws(3, 1) == draws(3, 1)
    assert len({tuple(draws(*pair)) for pair in [(3, 1), (3, 2), (4, 1), (1, 3)]}) == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_processors_come_before_the_warpers_and_may_write_to_the_scores(dtype):
    seen = []

    def processor(input_ids, scores):
        seen.append((input_ids.tolist(), scores.tolist()))
        scores[:, 0] = -math.inf
        return scores

    logits = torch.tensor([[8.0, 4.0]], dtype=dtype)
    sampler = Sampler(Sampling(temperature=0.5, top_k=1), 0, CPU, LogitsProcessorList([processor]))
    assert sampler([5, 6], logits) == 1
    assert seen == [([[5, 6]], [[8.0, 4.0]])]
    assert logits.tolist() == [[8.0, 4.0]]


def test_samples_do_not_depend_on_the_batch():
    model = model_of()
    prompts = prompts_of(5, 12, 3, 20)
    sampling = Sampling(temperature=1.0, top_k=50, top_p=0.9, seed=7)

    def tokens(count: int, slots: int) -> list[list[int]]:
        with engine_for(model, slots=slots) as engine:
            found = engine.generate(prompts[:count], max_new_tokens=12, sampling=sampling)
            return [one.tokens for one in found]

    together = tokens(4, 4)
    assert tokens(1, 4) == together[:1]
    assert tokens(4, 2) == tokens(4, 1) == together
    with engine_for(model, slots=4) as engine:
        other = engine.generate(
            prompts, max_new_tokens=12, sampling=Sampling(temperature=1.0, seed=8)
        )
    assert [one.tokens for one in other] != together


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1.0}, "temperature=-1.0: expected"),
        ({"temperature": math.nan}, "temperature=nan: expected"),
        ({"temperature": 1e-40}, "temperature=1e-40: expected a number from 1e-06 on, or 0"),
        ({"temperature": 1.0, "top_k": 0}, "top_k=0: expected"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p=0.0: expected"),
        ({"temperature": 1.0, "top_p": 1.1}, "top_p=1.1: expected"),
        ({"seed": -1}, "seed=-1: expected"),
        ({"seed": "1"}, "seed='1': expected"),
        ({"seed": 2**63}, f"seed={2**63}: expected"),
        ({"seed": 1.5}, "seed=1.5: expected a whole number"),
        ({"temperature": "1"}, "temperature='1': expected a number"),
        ({"temperature": 1.0, "top_k": 1.5}, "top_k=1.5: expected a whole number"),
        ({"top_k": 5}, "temperature=0 is greedy"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(TrimtabError, match=message):
        Sampling(**settings)
