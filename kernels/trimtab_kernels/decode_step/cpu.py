"""The executor of decode plans on a CPU: one C++ operator a step, on threads that stay awake in it.

Sums are in float32. Every row is computed in one order, so neither the rows beside it nor the way
they are grouped changes any bit of its logits; the number of threads does not either.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from trimtab_kernels import build
from trimtab_kernels.decode_step.description import described, described_whole
from trimtab_kernels.decode_step.plan import DecodePlan

DTYPES = (torch.float32, torch.bfloat16)
MOST_ROWS = 64
"""The most tokens in one step."""

FOLDER = Path(__file__).parent
LIBRARY = build.CpuLibrary(
    name="decode_step",
    sources=(
        *(
            FOLDER / name
            for name in (
                "cpu.cpp", "cpu_functions.h", "cpu_head.h", "cpu_parts.h", "cpu_products.h",
                "cpu_step.h", "cpu_team.h", "cpu_times.h",
            )
        ),
        *(
            FOLDER.parent / name
            for name in (
                "decode_attention/cpu_attend.h", "decode_attention/cpu_products.h",
                "decode_attention/cpu_softmax.h", "sparse_linear/cpu_gather.h",
                "sparse_linear/cpu_select.h",
            )
        ),
        *build.HEADERS,
    ),
    seconds=30,
)  # fmt: skip


class CpuExecutor:
    """Runs a plan on a cache. Not for several threads at a time.

    Parameters
    ----------
    plan : DecodePlan
        In float32 or bfloat16, on a CPU.
    keys, values : sequence of Tensor
        As for `reference.decode_step`.
    """

    def __init__(self, plan: DecodePlan, keys: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        tensors, numbers = described_whole(plan)
        self._plan = torch.classes.trimtab.CpuDecodePlan(tensors, numbers)
        for layer, layer_keys, layer_values in zip(plan.layers, keys, values, strict=True):
            tensors, numbers = described(layer)
            self._plan.add_layer(tensors | {"keys": layer_keys, "values": layer_values}, numbers)
        self._quantized: bool = self._plan.has_quantized_head()
        self._head = plan.head.weight

    def step(self, tokens: Tensor, slots: Tensor, positions: Tensor) -> Tensor:
        """Do what `reference.decode_step` does, for up to `MOST_ROWS` tokens."""
        logits: Tensor = self._plan.step(tokens, slots, positions)
        return logits

    @property
    def seconds(self) -> dict[str, float]:
        """What the time of all steps so far went to: the mean over the threads, by their work.

        ``inputs`` are norms and selections, ``linear layers`` the activations between them too, and
        ``waiting`` is for other threads. Together they are all the time in the operator.
        """
        return dict(self._plan.seconds())

    @property
    def has_quantized_head(self) -> bool:
        """Whether `choose` reads an int8 copy of the head: if its weight is [outputs, inputs]."""
        return self._quantized

    @property
    def unread_head_bytes(self) -> int:
        """How many bytes of the head `choose` leaves unread, less those of the int8 copy."""
        return self._head.nbytes - self.head_copy_bytes if self._quantized else 0

    @property
    def head_copy_bytes(self) -> int:
        """How many bytes the int8 copy of the head has; 0 without one."""
        weight = self._head
        scales = 2 * 4 * weight.shape[1]  # a scale and a bound for every output
        return weight.numel() + scales if self._quantized else 0

    @property
    def exact_logits(self) -> float:
        """How many logits `choose` has computed from the head itself, in the mean, for a token.

        All of them without an int8 copy; NaN before the first call.
        """
        return self._plan.exact_logits() if self._quantized else self._head.shape[1]

    def refresh_head(self) -> None:
        """Bring the int8 copy of the head up to date, after its weights may have changed.

        It takes the time of reading the head once, and its first call that of quantizing it.
        """
        if self._quantized:
            self._plan.refresh_head()

    def choose(self, tokens: Tensor, slots: Tensor, positions: Tensor) -> Tensor:
        """Return the argmax of what `step` returns, int64 of shape [rows].

        The int8 copy of the head rules out all tokens whose logits cannot be the largest, by a
        bound on what its rounding can do; the logits of the others are those of `step`. Call
        `refresh_head` before the first time.
        """
        if not self._quantized:
            return self.step(tokens, slots, positions).argmax(-1)
        chosen: Tensor = self._plan.choose(tokens, slots, positions)
        return chosen


def unavailable(dtype: torch.dtype, device: torch.device) -> str | None:
    """Return why this machine has no executor for models of a dtype on a device; None if it has.

    The first call builds it.
    """
    if device.type != "cpu" or dtype not in DTYPES:
        return f"there is no executor for {dtype} on {device.type}"
    return build.load(LIBRARY)


def describe(dtype: torch.dtype) -> str:
    """Return the name of the executor for a dtype, once it is available."""
    return build.describe(LIBRARY, dtype, "decode step", "modules")
