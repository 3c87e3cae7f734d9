"""What runs an engine's decode steps: an executor of the model's decode plan, or its modules."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedModel

from trimtab.errors import MisfitError
from trimtab.generation.plan import decode_plan
from trimtab.vattention.virtual_kv import VirtualKV
from trimtab_kernels.decode_step import cpu

MOST_ROWS = 16
"""The most tokens of a step for which an executor is faster than the modules."""


@dataclass(frozen=True)
class Executor:
    """Where decode steps run.

    Parameters
    ----------
    name : str
        What reports call it, or why the modules run instead.
    cpu : CpuExecutor or None
        None where the modules run.
    """

    name: str
    cpu: cpu.CpuExecutor | None = None

    def takes(self, rows: int) -> bool:
        """Return whether a step of so many tokens runs here, and not on the modules."""
        return self.cpu is not None and rows <= MOST_ROWS


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
