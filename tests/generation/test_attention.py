"""The attention of steps, compared with the reference one token at a time."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from tests.conftest import drawn
from trimtab.errors import MisfitError, TrimtabError
from trimtab.generation.attention import attention
from trimtab.generation.steps import DecodeStep, ExtendStep
from trimtab.vattention.attention import AttentionSpec
from trimtab_kernels import reference

HEADS, KV_HEADS, WIDTH = 4, 2, 8
MODULE = SimpleNamespace(layer_idx=1, num_key_value_groups=HEADS // KV_HEADS, is_causal=True)


def caches(slots: int, length: int) -> tuple[list[Tensor], list[Tensor]]:
    """Return keys and values of two layers, all NaN."""
    shape = slots, length, KV_HEADS, WIDTH
    keys, values = ([torch.full(shape, torch.nan) for _ in range(2)] for _ in range(2))
    return keys, values


@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("window", [None, 1, 3, 7, 100])
@pytest.mark.parametrize("cuts", [[12], [4, 8, 12], [1, 2, 7, 8, 12], [5, 12]])
def test_chunks_attend_as_single_tokens_do(cuts, window, softcap):
    total, slot = cuts[-1], 2
    query = drawn(1, HEADS, total, WIDTH)
    key, value = drawn(1, KV_HEADS, total, WIDTH), drawn(1, KV_HEADS, total, WIDTH) + 1
    keys, values = caches(3, total + 2)
    outputs = []
    for start, end in zip([0, *cuts], cuts, strict=False):
        step = ExtendStep(keys, values, slot, start, end, prompt=True)
        new = (one[:, :, start:end] for one in (query, key, value))
        outputs.append(step.attend(MODULE, *new, AttentionSpec(0.4, window, softcap)))
    found = torch.cat(outputs, dim=1)
    assert found.shape == (1, total, HEADS, WIDTH)

    rows = key[0].transpose(0, 1).expand(total, -1, -1, -1)
    others = value[0].transpose(0, 1).expand(total, -1, -1, -1)
    lengths = torch.arange(1, total + 1)
    expected = reference.decode_attention(
        query[0].transpose(0, 1), rows, others, lengths, 0.4, window, softcap
    )
    torch.testing.assert_close(found[0], expected)
    # Only this slot of this layer was written.
    assert torch.equal(keys[1][slot, :total], rows[0])
    assert torch.equal(values[1][slot, :total], others[0])
    keys[1][slot, :total] = values[1][slot, :total] = torch.nan
    assert all(cache.isnan().all() for cache in (*keys, *values))


def test_a_decode_step_appends_and_attends_up_to_the_lengths():
    lengths = torch.tensor([3, 0, 1], dtype=torch.int32)
    keys, values = caches(3, 4)
    keys[1][0, :2], values[1][0, :2] = drawn(2, KV_HEADS, WIDTH), drawn(2, KV_HEADS, WIDTH)
    step = DecodeStep(keys, values, lengths)
    query, key = drawn(3, HEADS, 1, WIDTH), drawn(3, KV_HEADS, 1, WIDTH)
    found = step.attend(MODULE, query, key, key, AttentionSpec(0.3))
    assert torch.equal(keys[1][0, 2], key[0, :, 0])
    assert keys[1][1].isnan().all()
    expected = reference.decode_attention(query[:, :, 0], keys[1], values[1], lengths, 0.3)
    torch.testing.assert_close(found, expected[:, None])
    assert not found[1].any()


@pytest.mark.parametrize(
    ("module", "passed", "message"),
    [
        ({}, {"s_aux": torch.ones(1)}, "s_aux"),
        ({}, {"position_bias": torch.ones(1)}, "position_bias"),
        ({}, {"dropout": 0.1}, "dropout"),
        ({"is_causal": False}, {}, "later tokens"),
        ({"config": SimpleNamespace(is_causal=False)}, {}, "later tokens"),
        ({}, {"is_causal": False}, "later tokens"),
        ({"is_causal": False}, {"s_aux": 1, "dropout": 0.1}, "s_aux, dropout, later tokens"),
    ],
)
def test_other_kinds_of_attention_are_refused(module, passed, message):
    tensors = (torch.zeros(1, 1, 1, 4),) * 3
    with pytest.raises(MisfitError, match=message):
        attention(SimpleNamespace(**module), *tensors, None, scaling=1.0, step=object(), **passed)


def test_a_forward_pass_without_a_step_is_refused():
    with pytest.raises(TrimtabError, match=r"call engine\.generate"):
        attention(MODULE, *(torch.zeros(1, 1, 1, 4),) * 3, None, scaling=1.0)
