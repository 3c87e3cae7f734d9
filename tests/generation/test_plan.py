"""The decode plan against transformers' own forward pass, for every architecture and method."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from tests.generation.models import VARIANTS, model_of
from tests.models.contract import assert_equal
from trimtab.generation.attention import NAME
from trimtab.generation.plan import decode_plan
from trimtab.models.adapter import head_shape
from trimtab.models.sources import DType
from trimtab.vattention.attention import using_attention
from trimtab_kernels.decode_step import DecodePlan, cpu
from trimtab_kernels.decode_step.reference import decode_step

LENGTH = 24


def plan_of(model: PreTrainedModel) -> DecodePlan:
    with using_attention(model, NAME):
        return decode_plan(model, LENGTH)


def empty_cache(model: PreTrainedModel, slots: int) -> tuple[list[Tensor], list[Tensor]]:
    heads, layers = head_shape(model.config), model.config.num_hidden_layers
    shape = slots, LENGTH, heads.kv_heads, heads.head_dim
    keys, values = (
        [torch.full(shape, torch.nan, dtype=model.dtype) for _ in range(layers)] for _ in range(2)
    )
    return keys, values


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_plan_is_the_models_forward_pass(variant):
    model = model_of(variant, DType.float64)
    ids = torch.randint(0, 256, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    expected = model(ids, past_key_values=DynamicCache(config=model.config)).logits
    plan, (keys, values) = plan_of(model), empty_cache(model, 3)
    # Two texts in slots of their own, in steps of one token of each, then many of both at once.
    slots = torch.tensor([2, 0])
    found = [
        decode_step(plan, keys, values, ids[:, at], slots, torch.tensor([at, at]))
        for at in range(LENGTH - 8)
    ]
    rest = torch.arange(LENGTH - 8, LENGTH)
    last = decode_step(
        plan, keys, values, ids[:, -8:].flatten(), slots.repeat_interleave(8), rest.repeat(2)
    )
    logits = torch.cat([torch.stack(found, 1), last.unflatten(0, (2, 8))], 1)
    assert_equal(logits, expected)


# Relative to the largest logit. In bfloat16 the reference rounds after every operation, and the
# executor does not.
TOLERANCE = {DType.float32: 1e-5, DType.bfloat16: 0.1}


def steps_of(ids: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield tokens, slots and positions: of two texts, of one alone, then many of both at once."""
    slots = torch.tensor([2, 0])
    for at in range(10):
        yield ids[:, at], slots, torch.tensor([at, at])
    yield ids[0, 10:11], slots[:1], torch.tensor([10])
    rest = torch.arange(10, LENGTH)
    tokens = torch.cat([ids[1, 10:], ids[0, 11:]])
    yield tokens, slots.flip(0).repeat_interleave(14)[:-1], torch.cat([rest, rest[1:]])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_cpu_executor_computes_the_plan(variant, dtype):
    model = model_of(variant, dtype)
    plan = plan_of(model)
    ids = torch.randint(0, 256, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    expected_cache, cache = empty_cache(model, 3), empty_cache(model, 3)
    assert cpu.unavailable(plan) is None
    executor = cpu.CpuExecutor(plan, *cache)
    for step in steps_of(ids):
        expected, found = decode_step(plan, *expected_cache, *step), executor.step(*step)
        assert found.dtype == expected.dtype
        difference = (found - expected).abs().max() / expected.abs().max()
        assert difference < TOLERANCE[dtype]
