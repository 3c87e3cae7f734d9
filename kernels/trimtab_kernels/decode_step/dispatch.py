"""Which executor runs a decode plan on which device."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Protocol

import torch
from torch import Tensor

from trimtab_kernels.decode_step import cpu
from trimtab_kernels.decode_step.plan import DecodePlan

CUDA_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class PlanExecutor(Protocol):
    """What runs a plan on a cache, for one thread at a time.

    Its arguments are int64 of shape [rows] on the host: tokens, slots and positions, as for
    `reference.decode_step`.
    """

    def step(self, tokens: Tensor, slots: Tensor, positions: Tensor) -> Tensor:
        """Do what `reference.decode_step` does; the logits are on the device of the plan."""

    def choose(self, tokens: Tensor, slots: Tensor, positions: Tensor) -> Tensor:
        """Return the argmax of what `step` returns, after a call of `refresh_head`."""

    def refresh_head(self) -> None:
        """Follow a change of the head's weights."""

    @property
    def seconds(self) -> dict[str, float]:
        """What the time of all steps so far went to, by kind of work, where it is known."""

    @property
    def has_quantized_head(self) -> bool:
        """Whether `choose` reads an int8 copy of the head."""

    @property
    def unread_head_bytes(self) -> int:
        """How many bytes of the head `choose` leaves unread, less those of the int8 copy."""

    @property
    def head_copy_bytes(self) -> int:
        """How many bytes the int8 copy of the head has; 0 without one."""

    @property
    def exact_logits(self) -> float:
        """How many logits `choose` computed from the head itself, in the mean, for a token."""


def unavailable(dtype: torch.dtype, device: torch.device) -> str | None:
    """Return why there is no executor for models of a dtype on a device; None if there is."""
    if device.type != "cuda":
        return cpu.unavailable(dtype, device)
    if dtype not in CUDA_DTYPES:
        return f"there is no executor for {dtype} on cuda"
    return None if find_spec("triton") else "Triton is not installed"


def describe(dtype: torch.dtype, device: torch.device) -> str:
    """Return the name of the executor, once it is known to be available."""
    if device.type == "cuda":
        return f"decode step in a CUDA graph, Triton, {str(dtype).removeprefix('torch.')}"
    return cpu.describe(dtype)


def executor(
    plan: DecodePlan, keys: Sequence[Tensor], values: Sequence[Tensor], *, batch_invariant: bool
) -> PlanExecutor:
    """Return what runs a plan on the device where it is.

    Parameters
    ----------
    plan : DecodePlan
    keys, values : sequence of Tensor
        As for `reference.decode_step`.
    batch_invariant : bool
        Whether a row is to have the same bits whatever rows are beside it. On a CPU it has anyway.

    Raises
    ------
    ValueError
        If the executor cannot read one of the tensors.
    """
    if plan.embedding.weight.device.type != "cuda":
        return cpu.CpuExecutor(plan, keys, values)
    from trimtab_kernels.decode_step import gpu

    return gpu.CudaExecutor(plan, keys, values, batch_invariant=batch_invariant)
