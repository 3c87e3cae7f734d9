"""What runs an engine's decode steps: an executor of the model's decode plan, or its modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from trimtab.errors import MisfitError
from trimtab.generation.plan import Observed, decode_plan
from trimtab.generation.steps import ExtendStep, Step
from trimtab.models.decode_parts import HasSiteInput, require_known_code
from trimtab.vattention.virtual_kv import VirtualKV
from trimtab_kernels.decode_step import DecodePlan, cpu

MOST_ROWS = 16
"""The most tokens that an executor takes at a time; the modules take longer given texts."""

PROBE = 4  # tokens by which an executor is compared with the modules
# Relative to the largest logit. A selection may decide near-ties in another way.
CLOSE, CLOSE_ENOUGH = 1e-3, 0.1

Run = Callable[[Tensor, Tensor, Step, int], Tensor]


@dataclass(frozen=True)
class Executor:
    """Where decode steps run, and drafts are verified.

    Parameters
    ----------
    name : str
        What reports call it, or why the modules run instead.
    cpu : CpuExecutor or None
        None where the modules run.
    """

    name: str
    cpu: cpu.CpuExecutor | None = None

    def step(self, tokens: Sequence[int], slots: Sequence[int], positions: Sequence[int]) -> Tensor:
        """Do what `trimtab_kernels.decode_step.reference` does, for any number of tokens.

        Those of one slot must fit into one part, `MOST_ROWS`.
        """
        assert self.cpu is not None
        rows = torch.tensor([tokens, slots, positions])
        return torch.cat([self.cpu.step(*part) for part in rows.split(MOST_ROWS, dim=1)])


def executor_for(model: PreTrainedModel, kv: VirtualKV, run: Run) -> Executor:
    """Return the executor for a model as it is now, with whatever methods have made of it.

    Parameters
    ----------
    model : PreTrainedModel
        Set to use the engine's attention function.
    kv : VirtualKV
    run : callable
        Runs the model's modules, given tokens and positions [1, tokens], a step, and how many
        tokens to return logits of.
    """
    reason = cpu.unavailable(model.dtype, model.device)
    if reason is None:
        try:
            executor = _checked(model, kv, run)
        except (MisfitError, ValueError) as error:
            reason = str(error)
        else:
            return Executor(cpu.describe(model.dtype), executor)
    return Executor(f"decode step by the model's modules: {reason}")


@torch.inference_mode()
def _checked(model: PreTrainedModel, kv: VirtualKV, run: Run) -> cpu.CpuExecutor:
    """Return an executor that computes what the modules compute of a few tokens.

    Raises
    ------
    MisfitError
        If there is no plan of the model, or it is not what the modules do.
    ValueError
        If the executor cannot read the model's tensors.
    """
    require_known_code(model)  # before a pass that the user's hooks would see
    geometry, slots = kv.geometry, torch.zeros(PROBE, dtype=torch.int64)
    shape = 1, PROBE, geometry.kv_heads, geometry.head_dim
    keys, values = ([torch.zeros(shape, dtype=model.dtype) for _ in kv.keys] for _ in range(2))
    embedding = cast(Tensor, model.get_input_embeddings().weight)
    tokens, positions = torch.arange(PROBE) % len(embedding), torch.arange(PROBE)
    observed = Observed(ExtendStep(keys, values, 0, 0, PROBE, prompt=False))
    with uncounted(model), observed.watching(model):
        expected = run(tokens[None], positions[None], observed, PROBE)[0]
    plan = decode_plan(model, observed, geometry.max_len)
    with uncounted(model):
        found = cpu.CpuExecutor(plan, keys, values).step(tokens, slots, positions)
    difference = float((found - expected).abs().max() / expected.abs().max())
    if expected.isfinite().all() and not difference <= _close(plan, model.dtype):
        raise MisfitError(f"its decode plan differs from it by {difference:.1g} of a logit")
    return cpu.CpuExecutor(plan, kv.keys, kv.values)


def _close(plan: DecodePlan, dtype: torch.dtype) -> float:
    selects = any(layer.mlp_input.selection is not None for layer in plan.layers)
    return CLOSE_ENOUGH if selects or dtype == torch.bfloat16 else CLOSE


@contextmanager
def uncounted(model: PreTrainedModel) -> Iterator[None]:
    """Have nothing count what runs within the block."""
    sites = [module.site_input() for module in model.modules() if isinstance(module, HasSiteInput)]
    counts = [site.selection.counts for site in sites if site.selection is not None]
    before = [None if one is None else one.clone() for one in counts]
    try:
        yield
    finally:
        for one, count in zip(counts, before, strict=True):
            if one is not None and count is not None:
                one.copy_(count)
