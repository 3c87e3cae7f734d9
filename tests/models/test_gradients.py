"""Gradients in float16, small and large ones."""

from __future__ import annotations

import pytest
import torch

from tests.conftest import drawn
from trimtab.models.gradients import gradients, repeatable


@pytest.mark.parametrize("size", [2.0**-60, 2.0**-20, 1.0, 2.0**40])
@pytest.mark.parametrize("growth", [2.0**-8, 1.0, 2.0**11])
def test_they_are_those_of_float32_however_small_and_however_they_grow(size, growth):
    weight, at_output = drawn(8, 8) * growth, drawn(4, 8) * size
    narrow = drawn(4, 8).half().requires_grad_()
    (found,) = gradients(narrow @ weight.half(), [narrow], at_output)
    expected = at_output @ weight.T
    assert found.dtype == torch.float32
    assert (found - expected).norm() < 2e-3 * expected.norm()


def test_where_none_arrive_there_are_none():
    narrow = drawn(4, 8).half().requires_grad_()
    (found,) = gradients(narrow * 2, [narrow], torch.zeros(4, 8))
    assert not found.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_in_other_dtypes_they_are_pytorch_s_own(dtype):
    wide, at_output = drawn(4, 8).to(dtype).requires_grad_(), drawn(4, 8)
    output = wide.tanh()
    (expected,) = torch.autograd.grad(output, wide, at_output.to(dtype), retain_graph=True)
    (found,) = gradients(output, [wide], at_output)
    assert torch.equal(found, expected)


def test_on_a_gpu_attention_is_the_plain_one_and_elsewhere_what_it_was():
    """Fused attention adds gradients up in another order every time."""
    fused = {"flash": True, "mem_efficient": True, "cudnn": True, "math": True}

    def enabled() -> dict[str, bool]:
        return {name: getattr(torch.backends.cuda, f"{name}_sdp_enabled")() for name in fused}

    before = enabled()
    with repeatable(torch.device("cuda", 1)):
        assert enabled() == {**dict.fromkeys(fused, False), "math": True}
    assert enabled() == before
    with repeatable(torch.device("cpu")):
        assert enabled() == before
