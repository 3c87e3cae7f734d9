"""The executor of decode plans on a GPU: Triton and the library's products, in a CUDA graph.

Imported only to run there, as importing Triton is slow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from trimtab_kernels.decode_step.checks import check_plan, check_rows
from trimtab_kernels.decode_step.gpu_step import decode_step
from trimtab_kernels.decode_step.plan import DecodePlan

MOST_ROWS = 16
"""The most tokens in one step."""

BUCKETS = (1, 2, 4, 8, MOST_ROWS)
"""The numbers of rows that there are graphs for."""

IDLE = (0, 0, -1)
"""Token, slot and position of a row that is not asked for. At no position, it neither writes into
the cache nor reads from it."""


class CudaExecutor:
    """Runs a plan on a cache. Not for several threads at a time.

    A step is captured into a graph the first time that as many rows are asked for, and replayed
    from then on. It reads tokens, slots and positions where they always are, on the device, and
    never waits for the host. The addresses in a graph stay valid: those of the weights as long as
    the plan is the model's, those of a virtual KV cache while it grows, since its tensors do not
    move and no row reads beyond its own position, where there may be no memory.

    Activations are rounded to the model's dtype between kernels, and sums are in float32, within
    the library's products as its own settings say. Their order may depend on the number of rows, up
    to the next of `BUCKETS`.

    On another device, for Triton's interpreter, steps run without a graph.

    Parameters
    ----------
    plan : DecodePlan
        In float32, float16 or bfloat16.
    keys, values : sequence of Tensor
        As for `reference.decode_step`.
    batch_invariant : bool
        Whether every step has `MOST_ROWS` rows, so that a row has the same bits whatever rows are
        beside it.

    Raises
    ------
    ValueError
        If the kernels cannot read one of the tensors.
    """

    has_quantized_head = False
    unread_head_bytes = 0
    head_copy_bytes = 0

    def __init__(
        self,
        plan: DecodePlan,
        keys: Sequence[Tensor],
        values: Sequence[Tensor],
        *,
        batch_invariant: bool = False,
    ) -> None:
        check_plan(plan, keys, values)
        self._plan, self._keys, self._values = plan, keys, values
        self._buckets = BUCKETS[-1:] if batch_invariant else BUCKETS
        weight = plan.embedding.weight
        self._idle = torch.tensor(IDLE)[:, None].expand(-1, MOST_ROWS).contiguous()
        self._rows = self._idle.to(weight.device, copy=True)
        self._given = self._idle.pin_memory() if weight.is_cuda else self._idle.clone()
        self._copied = torch.cuda.Event() if weight.is_cuda else None
        shape = MOST_ROWS, plan.head.weight.shape[1]
        self._logits = torch.empty(shape, dtype=weight.dtype, device=weight.device)
        self._replay: dict[int, Callable[[], object]] = {}
        # The memory of all graphs: what a step leaves there, the next one may overwrite.
        self._pool = torch.cuda.graph_pool_handle() if weight.is_cuda else None

    @torch.inference_mode()
    def step(self, tokens: Tensor, slots: Tensor, positions: Tensor) -> Tensor:
        """Do what `reference.decode_step` does, for up to `MOST_ROWS` tokens on the host."""
        return self._run(tokens, slots, positions).clone()

    @torch.inference_mode()
    def choose(self, tokens: Tensor, slots: Tensor, positions: Tensor) -> Tensor:
        """Return the argmax of what `step` returns, int64 of shape [rows] on the device."""
        return self._run(tokens, slots, positions).argmax(-1)

    @property
    def seconds(self) -> dict[str, float]:
        """Nothing: a graph does not say what its time goes to."""
        return {}

    @property
    def exact_logits(self) -> float:
        """All of them: there is no copy."""
        return self._plan.head.weight.shape[1]

    def refresh_head(self) -> None:
        """Do nothing: the head is read where it is."""

    def _run(self, tokens: Tensor, slots: Tensor, positions: Tensor) -> Tensor:
        """Return logits that the next step overwrites."""
        rows = check_rows(self._plan, self._keys[0], MOST_ROWS, tokens, slots, positions)
        count = rows.shape[1]
        bucket = next(size for size in self._buckets if size >= count)
        with torch.cuda.device_of(self._rows):
            if bucket not in self._replay:
                self._rows.copy_(self._idle)  # for the steps before the capture
                self._replay[bucket] = self._captured(bucket)
            if self._copied is not None:
                self._copied.synchronize()  # the copy of the step before may still be under way
            self._given.copy_(self._idle)
            self._given[:, :count] = rows
            self._rows.copy_(self._given, non_blocking=True)
            if self._copied is not None:
                self._copied.record()
            self._replay[bucket]()
        return self._logits[:count]

    def _captured(self, bucket: int) -> Callable[[], object]:
        """Return what runs a step over the first rows."""
        tokens, slots, positions = self._rows[:, :bucket]
        run = partial(
            decode_step, self._plan, self._keys, self._values, tokens, slots, positions,
            self._logits[:bucket],
        )  # fmt: skip
        if not self._rows.is_cuda:
            return run
        # What compiles, loads or allocates at its first call does so here, on idle rows.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            run()
            run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads may call the driver meanwhile, as the cache does to grow ahead.
        with torch.cuda.graph(
            graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"
        ):
            run()
        return graph.replay
