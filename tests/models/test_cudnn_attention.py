"""PyTorch's attention without cuDNN's kernel: where the flag is set, and put back."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from torch.backends.cuda import cudnn_sdp_enabled, enable_cudnn_sdp

from tests.generation.models import engine_for, model_of, prompts_of
from trimtab.models.state import without_cudnn_attention


@pytest.fixture(params=[True, False])
def found(request):
    """Return whether the caller has cuDNN's kernel enabled."""
    before = cudnn_sdp_enabled()
    enable_cudnn_sdp(request.param)
    yield request.param
    enable_cudnn_sdp(before)


def test_the_callers_choice_is_put_back_whatever_happens(found):
    with pytest.raises(KeyError), without_cudnn_attention():
        with without_cudnn_attention():
            assert not cudnn_sdp_enabled()
        assert not cudnn_sdp_enabled()
        raise KeyError
    assert cudnn_sdp_enabled() == found


def test_threads_whose_blocks_overlap_put_it_back_once(found):
    """The one that entered first leaves first."""
    entered, both, left = (Barrier(2, timeout=20) for _ in range(3))

    def first() -> None:
        with without_cudnn_attention():
            entered.wait()
            both.wait()
        left.wait()

    def second() -> bool:
        entered.wait()
        with without_cudnn_attention():
            both.wait()
            left.wait()
            return cudnn_sdp_enabled()

    with ThreadPoolExecutor(2) as threads:
        threads.submit(first)
        assert not threads.submit(second).result()
    assert cudnn_sdp_enabled() == found


def test_no_pass_of_an_engine_runs_with_it(found):
    """Not the prompt's, on the model's modules; between passes the caller's choice holds."""
    model = model_of()
    seen: list[bool] = []
    model.register_forward_pre_hook(lambda *_: seen.append(cudnn_sdp_enabled()))
    between: list[bool] = []
    with engine_for(model) as engine:
        engine.generate(
            prompts_of(20, 5), max_new_tokens=3,
            on_token=lambda *_: between.append(cudnn_sdp_enabled()),
        )  # fmt: skip
    assert seen
    assert not any(seen)
    assert between == [found] * 6
