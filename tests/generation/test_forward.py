"""The forward passes, on a cache that also holds sequences that do not decode."""

from __future__ import annotations

import pytest
import torch

from tests.generation.models import VARIANTS, model_of, prompts_of
from trimtab.generation.attention import NAME
from trimtab.generation.forward import Forward, Span
from trimtab.models.adapter import head_shape
from trimtab.vattention.attention import using_attention
from trimtab.vattention.virtual_kv import VirtualKV
from trimtab_kernels.decode_step import dispatch


@torch.inference_mode()
def test_slots_that_do_not_decode_are_left_alone():
    model = model_of()
    text, other = prompts_of(6, 9)
    expected = model(torch.tensor([text])).logits[0]
    with VirtualKV(3, 3, 64, 2, 16, torch.float32, page_group=4096) as kv:
        mine, theirs = kv.acquire(), kv.acquire()
        kv.ensure({theirs: len(other)})
        with using_attention(model, NAME):
            forward = Forward(model, kv)
            forward.prefill([Span(theirs, other[:4], 0)])
            marked = [cache[theirs, : len(other)] for cache in (*kv.keys, *kv.values)]
            for cache in marked:
                cache[4:] = 7
            before = [cache.clone() for cache in marked]
            kv.ensure({mine: 5})
            found = [
                forward.prefill([Span(mine, text[:3], 0)]),
                forward.verify([Span(mine, text[3:5], 3)]),
            ]
            for token in text[5:]:
                kv.ensure({mine: kv.length(mine) + 1})
                found.append(forward.decode({mine: token}))
        torch.testing.assert_close(torch.cat(found), expected[2:], atol=1e-4, rtol=1e-4)
        assert all(torch.equal(cache, one) for cache, one in zip(marked, before, strict=True))
        del forward, marked, cache


@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_prompts_in_one_pass_are_each_processed_as_if_alone(variant):
    model = model_of(variant)
    prompts = prompts_of(20, 3, 9)
    expected = [model(torch.tensor([prompt])).logits[0, -1] for prompt in prompts]
    heads = head_shape(model.config)
    layers = model.config.num_hidden_layers
    shape = heads.kv_heads, heads.head_dim, torch.float32
    with VirtualKV(layers, 3, 64, *shape, page_group=4096) as kv:
        slots = [kv.acquire() for _ in prompts]
        kv.ensure({slot: len(prompt) for slot, prompt in zip(slots, prompts, strict=True)})
        with using_attention(model, NAME):
            forward = Forward(model, kv)
            forward.prefill([Span(slots[0], prompts[0][:8], 0)])
            found = forward.prefill(
                [
                    Span(slots[2], prompts[2], 0),
                    Span(slots[0], prompts[0][8:], 8),
                    Span(slots[1], prompts[1], 0),
                ]
            )
        del forward
    torch.testing.assert_close(found[[1, 2, 0]], torch.stack(expected), atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_rows_of_a_step_by_the_modules_are_in_the_order_asked_for(monkeypatch):
    monkeypatch.setattr(dispatch, "unavailable", lambda *_: "for a test")
    model = model_of()
    texts = prompts_of(6, 9, 4)
    expected = [model(torch.tensor([text])).logits[0, -1] for text in texts]
    with VirtualKV(3, 4, 64, 2, 16, torch.float32, page_group=4096) as kv:
        slots = [kv.acquire() for _ in texts]
        kv.ensure({slot: len(text) for slot, text in zip(slots, texts, strict=True)})
        with using_attention(model, NAME):
            forward = Forward(model, kv)
            assert forward.executor.of_plan is None
            for slot, text in zip(slots, texts, strict=True):
                forward.prefill([Span(slot, text[:-1], 0)])
            for order in ([2, 0], [1], [0, 2, 1]):
                found = forward.decode({slots[index]: texts[index][-1] for index in order})
                wanted = torch.stack([expected[index] for index in order])
                torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
        del forward
