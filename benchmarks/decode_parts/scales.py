"""Decode steps at one point of a scale: some context, some rows, some threads."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import torch
from kv_parts.stepping import States, fill, in_cache, in_engine
from kv_parts.timing import WARM_UP, interleave
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from decode_parts.machine import pages
from trimtab.evaluation.bandwidth import READ_BYTES, Reader
from trimtab.evaluation.intervals import ratio
from trimtab.evaluation.memory import step_bytes, twin
from trimtab.evaluation.work import milliseconds, spent
from trimtab.generation.executor import Executor
from trimtab.optimized import Optimized
from trimtab.progress import say

LIBRARY, DENSE, READ = "transformers", "vattention", "read"
PREFIX = 512  # tokens whose keys and values are repeated to fill a context

Row = dict[str, Any]


@dataclass(frozen=True)
class Point:
    """Tokens in every row's context, rows of a step, and threads."""

    context: int
    rows: int
    threads: int


class Steps:
    """The steps of one model: transformers', the engine's, and the engine's with LaRoSA.

    Parameters
    ----------
    model : PreTrainedModel
        Unmodified.
    optimized : Optimized
        A copy with LaRoSA at work.
    prompt : list of int
        What a context consists of; repeated where it is shorter.
    """

    def __init__(
        self, model: PreTrainedModel, optimized: Optimized, prompt: list[int], options: Namespace
    ) -> None:
        self._model, self._optimized, self._options = model, optimized, options
        self._sparse = f"larosa {options.sparsity:g}, vattention"
        self._states, self._token = _states(model, prompt[: PREFIX + 1])
        self.pages = pages()  # without those of the reader
        self._reader = Reader(torch.device("cpu"))
        self.pages["read_huge_share"] = self._reader.huge_share

    @torch.inference_mode()
    def at(self, point: Point) -> Iterator[Row]:
        """Yield a row a kind of step, measured in turn."""
        torch.set_num_threads(point.threads)
        samples, chosen = self._options.samples, dict[str, Tensor]()
        with ExitStack() as stack:
            steps, executors = self._steps(stack, point)
            notes = {name: one.name for name, one in executors.items()}
            with self._optimized.applied.recording():
                steps[self._sparse]()
            sizes = self._bytes(point)

            def noting(name: str) -> Callable[[], Any]:
                return lambda: chosen.update({name: steps[name]().argmax(-1)})

            runs: dict[str, Callable[[], Any]] = {name: noting(name) for name in steps}
            turns = {READ: self._reader, **runs}
            interleave(turns, 0, "cpu")  # the warm-up alone
            before = {name: one.seconds for name, one in executors.items()}
            times = interleave(turns, samples, "cpu", warm_up=0)
            work = {name: spent(before[name], one.seconds) for name, one in executors.items()}
            for held in (steps, executors):
                stack.callback(held.clear)  # of tensors over the caches, which are closed now
        for name in runs:
            own = times[name]
            floors = [sizes[name] * read / READ_BYTES for read in times[READ]]
            row = {
                **asdict(point),
                "step": name,
                "note": notes.get(name),
                "ms": _ratio(own, [1e3] * samples),
                "speedup": _ratio(times[LIBRARY], own),
                "step_bytes": sizes[name],
                "floor_ms": sum(floors) / samples / 1e3,
                "floor_share": _ratio(floors, own),
                "work_ms": milliseconds([work.get(name, {})], sum(own) / 1e6, samples),
                "same_tokens": float((chosen[name] == chosen[LIBRARY]).float().mean()),
                "samples_us": own,
                "read_us": times[READ],
            }
            ms, speedup = row["ms"]["estimate"], row["speedup"]["estimate"]
            say(
                f"{point.context} tokens, {point.rows} rows, {point.threads} threads, {name}: "
                f"{ms:.2f} ms, {speedup:.2f} x {LIBRARY}"
            )
            yield row

    def _steps(
        self, stack: ExitStack, point: Point
    ) -> tuple[dict[str, Callable[[], Tensor]], dict[str, Executor]]:
        """Return the steps by name, and what runs the engine's."""
        copies = -(-point.context // self._states[0][0].shape[2])
        states = [
            tuple(part.repeat(1, 1, copies, 1)[:, :, : point.context] for part in pair)
            for pair in self._states
        ]
        tokens = torch.full((point.rows, 1), self._token)
        most = point.context + 1 + WARM_UP + self._options.samples
        cache = DynamicCache(config=self._model.config)
        fill([cache], states, point.rows)
        models = {DENSE: twin(self._model), self._sparse: self._optimized.model}
        steps, executors = {LIBRARY: in_cache(self._model, cache, tokens)}, dict[str, Executor]()
        for name, model in models.items():
            steps[name], executors[name] = in_engine(stack, model, states, tokens, most)
        return steps, executors

    def _bytes(self, point: Point) -> dict[str, int]:
        """Return the bytes that each step reads; with LaRoSA, the weights that one row needs."""
        context = sum(part[:, :, :1].nbytes for pair in self._states for part in pair)
        kept = point.rows * point.context * context
        sparse = step_bytes(self._optimized.model) + self._optimized.applied.extra_step_bytes()
        dense = step_bytes(self._model)
        return {LIBRARY: dense + kept, DENSE: dense + kept, self._sparse: sparse + kept}


@torch.inference_mode()
def _states(model: PreTrainedModel, prompt: list[int]) -> tuple[States, int]:
    """Return the keys and values of a prompt without its last token, and that token."""
    run: Any = model
    prefilled = DynamicCache(config=model.config)
    run(torch.tensor([prompt[:-1]]), past_key_values=prefilled, logits_to_keep=1)
    return [(layer.keys, layer.values) for layer in prefilled.layers], prompt[-1]


def _ratio(numerator: list[float], denominator: list[float]) -> dict[str, float]:
    return ratio(numerator, denominator, paired=True, seed=0)
