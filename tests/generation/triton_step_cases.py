"""Checks of the CUDA executor on any device; as a module, on Triton's interpreter."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from unittest.mock import patch

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.generation.models import VARIANTS, engine_for, model_of, prompts_of, stock
from tests.kernels.interpreting import prepare_interpreter
from tests.models.plan_contract import LENGTH, plan_of
from trimtab.generation import executor, forward
from trimtab.generation.executor import MOST_ROWS
from trimtab.models.adapter import head_shape
from trimtab.models.sources import DType
from trimtab_kernels.decode_step import DecodePlan, Layer, Linear, Selection, SiteInput, dispatch
from trimtab_kernels.decode_step.dispatch import describe
from trimtab_kernels.decode_step.reference import decode_step

# Relative to the largest logit; the reference rounds after every operation.
CLOSE = {torch.float32: 3e-5, torch.bfloat16: 0.1, torch.float16: 0.02}
SLOTS = 3
FEW_ROWS = 8  # as many as an engine asks of an executor at once, to compare it with the modules
# Slots and positions of the rows of a step: of two texts, and of one alone.
STEPS = (((2, 9), (2, 10), (0, 5)), ((2, 11),))
ALL = [one for one in VARIANTS if f"{one}, window" not in VARIANTS]
FEW = ["llama", "gemma2"]  # with those of `main`, most of what any plan has


def check(plan: DecodePlan, model: PreTrainedModel, *, batch_invariant: bool = False) -> None:
    """Compare logits, cache and counts with the reference's."""
    from trimtab_kernels.decode_step import gpu

    device, dtype = plan.embedding.weight.device, plan.embedding.weight.dtype
    cache = started_cache(model)
    runner = gpu.CudaExecutor(plan, *cache, batch_invariant=batch_invariant)
    expected_cache = started_cache(model)
    for places in STEPS:
        slots, positions = torch.tensor(places).T.contiguous()
        rows = (7 * positions + slots) % 256, slots, positions
        expected = decode_step(plan, *expected_cache, *(row.to(device) for row in rows)).float()
        wanted = counted(plan)
        found = runner.step(*rows)
        assert found.dtype == dtype
        assert (found.float() - expected).abs().max() < CLOSE[dtype] * expected.abs().max()
        assert counted(plan) == wanted
    assert torch.equal(runner.choose(*rows), found.argmax(-1))
    counted(plan)
    for part, expected_part in zip(cache, expected_cache, strict=True):
        for own, other in zip(part, expected_part, strict=True):
            # Nothing but the rows was written: the rest is NaN, or what it was.
            assert torch.equal(own.isnan(), other.isnan())
            assert (own - other).abs().nan_to_num().max() < 10 * CLOSE[dtype]
            assert own._base is not None
            assert own._base[:, 0].isnan().all()


def started_cache(model: PreTrainedModel) -> tuple[list[Tensor], list[Tensor]]:
    """Return a cache with something in the positions before those of `STEPS`, and NaN elsewhere.

    Before the first position of every slot is one more that is nobody's.
    """
    heads, layers = head_shape(model.config), model.config.num_hidden_layers
    shape = SLOTS, 1 + LENGTH, heads.kv_heads, heads.head_dim
    generator = torch.Generator().manual_seed(0)

    def started() -> Tensor:
        wide = torch.full(shape, torch.nan)
        for slot, length in ((2, 9), (0, 5)):
            wide[slot, 1 : 1 + length].normal_(generator=generator)
        return wide.to(model.device, model.dtype)[:, 1:]

    keys, values = ([started() for _ in range(layers)] for _ in range(2))
    return keys, values


def counted(plan: DecodePlan) -> list[list[int]]:
    """Return what was counted since the last call, by layer and site."""
    tensors = [
        site.selection.counts
        for layer in plan.layers
        for site in sites(layer)
        if site.selection is not None and site.selection.counts is not None
    ]
    found = [one.tolist() for one in tensors]
    for one in tensors:
        one.zero_()
    return found


def sites(layer: Layer) -> tuple[SiteInput, ...]:
    return layer.attention_input, layer.attention_output, layer.mlp_input, layer.mlp_activation


def rotation(width: int, like: Tensor) -> Tensor:
    drawn = torch.randn(width, width, generator=torch.Generator().manual_seed(width))
    return torch.linalg.qr(drawn).Q.to(like)


def sparse(plan: DecodePlan) -> DecodePlan:
    """Return a plan that changes bases, and drops activations at every site by other rules.

    In every other layer the rules are such as need a launch of their own.
    """
    like = plan.embedding.weight
    width = like.shape[1]
    matrix = rotation(width, like)
    scale = matrix.float().abs().amax(0) / 127
    int8 = (matrix.float() / scale).round().to(torch.int8).contiguous()

    def counting(keep: int, threshold: float, prefix: int) -> Selection:
        zeros = torch.zeros(2, dtype=torch.int64, device=like.device)
        return Selection(keep, threshold, prefix, zeros)

    def major(linear: Linear) -> Linear:
        return replace(linear, weight=linear.weight.contiguous())

    def dropping(layer: Layer, index: int) -> Layer:
        attended, hidden = len(layer.output.weight), len(layer.down.weight)
        apart = index % 2 == 0
        return replace(
            layer,
            basis_change=matrix if index else None,
            attention_input=replace(
                layer.attention_input,
                transform=matrix if apart else None,
                selection=counting(width // 2, 0.0 if apart else 0.2, 3),
            ),
            attention_output=SiteInput(selection=counting(attended, 0.02, 0)),
            mlp_input=replace(
                layer.mlp_input,
                transform=int8,
                transform_scale=scale,
                selection=counting(width // 3 if apart else width, 0.3, 10),
            ),
            mlp_activation=SiteInput(
                selection=counting(hidden // 2 if apart else hidden, 0.0 if apart else 0.03, 0)
            ),
            projections=tuple(map(major, layer.projections)),
            output=major(layer.output),
            mlp=tuple(map(major, layer.mlp)),
            down=major(layer.down),
        )

    layers = tuple(dropping(layer, index) for index, layer in enumerate(plan.layers))
    return replace(plan, layers=layers, basis_change=matrix.T.contiguous())


def check_engine(device: str, rows: int = MOST_ROWS) -> None:
    """Compare texts with transformers'; there are more of them than the rows of one step.

    The cache has the layout and pages of a GPU.
    """
    model = torch.nn.Module.to(model_of(), device)
    prompts = prompts_of(*range(1, rows + 2))
    expected = [stock(model, prompt, 2) for prompt in prompts]
    cache = {"prefill_chunk": 512, "layout": "mega", "page_group": 2 << 20}
    with engine_for(model, slots=len(prompts), **cache) as engine:
        assert "CUDA graph" in engine.decode_step, engine.decode_step
        found = engine.generate(prompts, max_new_tokens=2)
    assert [one.tokens for one in found] == expected


def main(variants: Iterable[str]) -> None:
    """Check architectures in float32, and some with other dtypes and dropped activations."""
    for variant in variants:
        model = model_of(variant)
        check(plan_of(model), model, batch_invariant=variant == "llama")
    for variant, dtype in (("gemma3", DType.bfloat16), ("qwen3", DType.float16)):
        model = model_of(variant, dtype)
        check(plan_of(model), model)
    for variant in ("llama", "opt"):
        model = model_of(variant)
        check(sparse(plan_of(model)), model)
    from trimtab_kernels.decode_step import gpu

    with patch.multiple(
        dispatch,
        unavailable=lambda *_: None,
        describe=lambda dtype, device: describe(dtype, torch.device("cuda")),
        executor=gpu.CudaExecutor,
    ):
        check_engine("cpu", FEW_ROWS)


def with_few_rows(undo: ExitStack) -> None:
    """Have the steps of an executor take fewer rows: the interpreter is slow."""
    from trimtab_kernels.decode_step import gpu

    for module in (gpu, executor, forward):
        undo.enter_context(patch.object(module, "MOST_ROWS", FEW_ROWS))
    undo.enter_context(patch.object(gpu, "BUCKETS", (*gpu.BUCKETS[:-2], FEW_ROWS)))


if __name__ == "__main__":
    if not os.environ.get("TRITON_INTERPRET"):
        sys.exit("set TRITON_INTERPRET=1")
    prepare_interpreter()
    with ExitStack() as undo:
        with_few_rows(undo)
        main(sys.argv[1:])
