"""What the decode plan of every supported architecture must fulfil; a new one inherits it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from tests.conftest import random_inputs
from tests.generation.models import changed
from tests.models.contract import assert_equal
from trimtab.generation.attention import NAME
from trimtab.generation.plan import Observed, decode_plan
from trimtab.generation.steps import ExtendStep
from trimtab.models.adapter import head_shape
from trimtab.models.sources import DType
from trimtab.vattention.attention import using_attention
from trimtab_kernels.decode_step import DecodePlan, cpu
from trimtab_kernels.decode_step.reference import decode_step

LENGTH = 24
# Relative to the largest logit. In bfloat16 the reference rounds after every operation, and the
# executor does not.
CLOSE = {DType.float32: 1e-5, DType.bfloat16: 0.1}


def steps_of(ids: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield tokens, slots and positions: of two texts, of one alone, then many of both at once."""
    slots = torch.tensor([2, 0])
    for at in range(10):
        yield ids[:, at], slots, torch.tensor([at, at])
    yield ids[0, 10:11], slots[:1], torch.tensor([10])
    rest = torch.arange(10, LENGTH)
    tokens = torch.cat([ids[1, 10:], ids[0, 11:]])
    yield tokens, slots.flip(0).repeat_interleave(14)[:-1], torch.cat([rest, rest[1:]])


def plan_of(model: PreTrainedModel, max_len: int = LENGTH) -> DecodePlan:
    observed = Observed(ExtendStep(*empty_cache(model, 1), 0, 0, 2, prompt=False))
    ids = torch.arange(2, device=model.device)[None]
    no_mask = torch.zeros(1, 1, 1, 1, dtype=torch.bool, device=model.device)
    with using_attention(model, NAME), observed.watching(model):
        model(ids, position_ids=ids, attention_mask=no_mask, use_cache=False, step=observed)
    return decode_plan(model, observed, max_len)


def empty_cache(model: PreTrainedModel, slots: int) -> tuple[list[Tensor], list[Tensor]]:
    heads, layers = head_shape(model.config), model.config.num_hidden_layers
    shape = slots, LENGTH, heads.kv_heads, heads.head_dim
    make = partial(torch.full, shape, torch.nan, dtype=model.dtype, device=model.device)
    keys, values = ([make() for _ in range(layers)] for _ in range(2))
    return keys, values


class PlanContract:
    """A decode plan computes what transformers does, and the C++ executor computes the plan.

    Attributes
    ----------
    shape : str
        Name of a tiny shape in shapes.yaml.
    changes : mapping of str to object
        Settings of its config, by name.
    """

    shape: ClassVar[str]
    changes: ClassVar[Mapping[str, Any]] = {}

    def test_a_plan_is_the_models_forward_pass(self):
        model = changed(self.shape, self.changes, DType.float64)
        ids = random_inputs(2, LENGTH)
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

    @pytest.mark.parametrize(
        "dtype",
        [DType.float32, pytest.param(DType.bfloat16, marks=pytest.mark.exhaustive)],
    )
    def test_the_cpu_executor_computes_the_plan(self, dtype):
        model = changed(self.shape, self.changes, dtype)
        assert cpu.unavailable(model.dtype, model.device) is None
        plan = plan_of(model)
        ids = random_inputs(2, LENGTH)
        expected_cache, cache = empty_cache(model, 3), empty_cache(model, 3)
        executor = cpu.CpuExecutor(plan, *cache)
        for step in steps_of(ids):
            expected, found = decode_step(plan, *expected_cache, *step), executor.step(*step)
            assert found.dtype == expected.dtype
            assert (found - expected).abs().max() / expected.abs().max() < CLOSE[dtype]
