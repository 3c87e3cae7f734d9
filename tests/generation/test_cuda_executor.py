"""The CUDA executor: on Triton's interpreter, and what it refuses; on a GPU, its graphs."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from tests.conftest import ROOT
from tests.generation import triton_step_cases
from tests.generation.models import VARIANTS, engine_for, model_of, prompts_of
from tests.generation.test_plan import OUTSIDE
from tests.models.plan_contract import LENGTH, empty_cache, plan_of
from trimtab.generation import Engine
from trimtab.models.sources import DType
from trimtab.vattention.virtual_kv import VirtualKV
from trimtab_kernels.decode_step import Linear, Selection, SiteInput, dispatch
from trimtab_kernels.decode_step.reference import decode_step

gpu = pytest.importorskip("trimtab_kernels.decode_step.gpu")


@pytest.mark.parametrize(
    "variants",
    [
        pytest.param(triton_step_cases.FEW, id="few"),
        pytest.param(triton_step_cases.ALL, id="all", marks=pytest.mark.exhaustive),
    ],
)
def test_every_plan_is_computed_on_the_interpreter(variants):
    done = subprocess.run(
        [sys.executable, "-m", "tests.generation.triton_step_cases", *variants],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONFAULTHANDLER": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda plan: {"head": Linear(plan.head.weight.double())}, "head.weight is torch.float64"),
        (
            lambda plan: {"final_norm": replace(plan.final_norm, weight=torch.ones(64, 2)[:, 0])},
            r"final_norm.weight has the strides \(2,\)",
        ),
        (
            lambda plan: {
                "embedding": replace(plan.embedding, positions=torch.zeros(LENGTH - 1, 64))
            },
            f"embeddings of positions are {LENGTH - 1}; expected {LENGTH}",
        ),
        (
            lambda plan: {
                "layers": tuple(
                    replace(
                        one,
                        down=Linear(torch.zeros(16385, 64)),
                        mlp_activation=SiteInput(selection=Selection(7)),
                    )
                    for one in plan.layers
                )
            },
            "16385 activations to select from; expected at most 16384",
        ),
        (
            lambda plan: {
                "layers": tuple(
                    replace(one, query_norm=replace(one.attention_input.norm, epsilon=0.5))
                    for one in plan.layers
                )
            },
            "norms of queries and keys",
        ),
    ],
)
def test_a_plan_that_the_kernels_cannot_read_is_refused(change, message):
    model = model_of()
    plan = plan_of(model)
    with pytest.raises(ValueError, match=message):
        gpu.CudaExecutor(replace(plan, **change(plan)), *empty_cache(model, 1))


@pytest.mark.parametrize(("step", "message"), OUTSIDE)
def test_a_step_outside_model_or_cache_is_refused(step, message):
    model = model_of()
    executor = gpu.CudaExecutor(plan_of(model), *empty_cache(model, 3))
    with pytest.raises(ValueError, match=message):
        executor.step(*(torch.tensor(row, dtype=torch.int64) for row in step))


def test_what_runs_on_a_gpu_is_said():
    cuda = torch.device("cuda")
    assert dispatch.unavailable(torch.float16, cuda) is None
    assert (
        dispatch.unavailable(torch.float64, cuda)
        == "there is no executor for torch.float64 on cuda"
    )
    assert dispatch.describe(torch.float16, cuda) == "decode step in a CUDA graph, Triton, float16"


def on_gpu(variant: str = "llama", dtype: DType = DType.float32) -> PreTrainedModel:
    return nn.Module.to(model_of(variant, dtype), "cuda")


@pytest.fixture
def float32_sums(monkeypatch):
    """Have the library's products sum in float32, as the reference's on a CPU do."""
    for kind in ("fp16", "bf16"):
        name = f"allow_{kind}_reduced_precision_reduction"
        monkeypatch.setattr(torch.backends.cuda.matmul, name, False)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [DType.float32, DType.float16, DType.bfloat16])
@pytest.mark.parametrize("variant", VARIANTS)
def test_graphs_compute_every_plan(variant, dtype, float32_sums):
    model = on_gpu(variant, dtype)
    triton_step_cases.check(plan_of(model), model)
    triton_step_cases.check(plan_of(model), model, batch_invariant=True)


@pytest.mark.gpu
@pytest.mark.parametrize("variant", ["llama", "opt"])
def test_graphs_drop_what_the_reference_drops(variant):
    model = on_gpu(variant)
    triton_step_cases.check(triton_step_cases.sparse(plan_of(model)), model)


@pytest.mark.gpu
def test_an_engine_runs_more_texts_than_a_graph_has_rows():
    triton_step_cases.check_engine("cuda")


@pytest.mark.gpu
def test_graphs_stay_valid_while_the_cache_grows_and_weights_change():
    """A page of the tiny Llama's cache holds 5 461 tokens."""
    model = on_gpu()
    config = model.config
    geometry = config.num_hidden_layers, 2, 40_000, config.num_key_value_heads, config.head_dim

    def replay(kv: VirtualKV, slot: int) -> None:
        plan = plan_of(model, kv.geometry.max_len)
        executor = gpu.CudaExecutor(plan, kv.keys, kv.values)
        filled = 0
        # Every number of rows, and its graph, comes again once there are more pages.
        for length, rows in ((5, 1), (9, 3), (17_000, 1), (17_010, 3), (35_000, 16), (35_001, 1)):
            kv.ensure({slot: length})
            for part in (*kv.keys, *kv.values):
                part[slot, filled:length].normal_()
            filled = length
            positions = torch.arange(length - rows, length)
            tokens = positions % 256
            copies = ([part[slot : slot + 1, :length].clone() for part in parts]
                      for parts in (kv.keys, kv.values))  # fmt: skip
            none = torch.zeros_like(positions)
            given = (one.cuda() for one in (tokens, none, positions))
            expected = decode_step(plan, *copies, *given)
            found = executor.step(tokens, none + slot, positions)
            assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
            plan.layers[1].down.weight.mul_(-1.5)

    with VirtualKV(*geometry, torch.float32, device="cuda") as kv:
        kv.acquire()
        replay(kv, kv.acquire())


@pytest.mark.gpu
def test_replaced_weights_have_graphs_of_their_own():
    model, prompts = on_gpu(), prompts_of(7, 4)

    def generated(engine: Engine) -> list[list[int]]:
        return [one.tokens for one in engine.generate(prompts, max_new_tokens=8)]

    with engine_for(model) as engine:
        before = generated(engine)
        down = model.get_submodule("model.layers.0.mlp.down_proj")
        down.weight = nn.Parameter(-2 * down.weight, requires_grad=False)
        found = generated(engine)
    with engine_for(model) as engine:
        assert found == generated(engine) != before
