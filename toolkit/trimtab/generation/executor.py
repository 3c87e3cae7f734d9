"""What runs an engine's decode steps: an executor of the model's decode plan, or its modules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from trimtab.errors import MisfitError
from trimtab.generation.plan import decode_plan
from trimtab.vattention.virtual_kv import VirtualKV
from trimtab_kernels.decode_step import cpu

MOST_ROWS = 16
"""The most tokens that an executor takes at a time; the modules take longer given texts."""


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


def executor_for(model: PreTrainedModel, kv: VirtualKV) -> Executor:
    """Return the executor for a model as it is now, with whatever methods have made of it.

    Parameters
    ----------
    model : PreTrainedModel
        Set to use the engine's attention function.
    kv : VirtualKV
    """
    reason = cpu.unavailable(model.dtype, model.device)
    if reason is None:
        try:
            plan = decode_plan(model, kv.geometry.max_len)
        except MisfitError as error:
            reason = str(error)
        else:
            executor = cpu.CpuExecutor(plan, kv.keys, kv.values)
            return Executor(cpu.describe(model.dtype), executor)
    return Executor(f"decode step by the model's modules: {reason}")
