"""The part `steps`: decode steps of whole models, each beside our dense one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from kv_parts.stepping import fill, in_cache
from kv_parts.timing import WARM_UP, interleave
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel, StaticCache

from gpu_parts.models import plan_of, random_cache, require_room
from gpu_parts.profiling import profiled
from gpu_parts.sparse_plan import larosa_plan, unread_bytes
from gpu_parts.step_rows import AGAIN, DENSE, step_rows
from gpu_parts.timing import attention_with, middle, read_rates
from gpu_parts.unit import Options, Result, Unit
from trimtab.errors import TrimtabError
from trimtab.evaluation.intervals import ratio
from trimtab.evaluation.memory import parameter_bytes, step_bytes
from trimtab.models.facts import CacheShape
from trimtab_kernels.decode_step import DecodePlan, dispatch
from trimtab_kernels.decode_step.dispatch import PlanExecutor
from trimtab_kernels.decode_step.reference import decode_step

DYNAMIC, STATIC, COMPILED = "dynamic cache", "static cache", "static cache, torch.compile"
WITHOUT_CUDNN = f"{DYNAMIC}, without cuDNN"
LIBRARY = {"cpu": (DYNAMIC, STATIC), "cuda": (DYNAMIC, WITHOUT_CUDNN, STATIC)}
PRIMING = 3  # steps that compile, and record a graph
TOKEN = 7
FITTED = 4  # positions that thresholds are fitted to
Step = Callable[[], Any]


def steps(options: Options) -> Iterator[Unit]:
    """Yield the units of this part."""
    ours = [DENSE, *(f"sparse {one:g}" for one in options.sizes.step_sparsities)]
    for model in options.model:
        for rows, context in options.sizes.points:
            point = Point(model, rows, context, options)
            place = f"{model}, {rows} x {context} tokens"
            theirs = LIBRARY[options.device]
            if options.device == "cuda" and (rows, context) == options.sizes.points[0]:
                theirs = (*theirs, COMPILED)  # which takes a minute
            for contender in (*ours, *(f"transformers, {name}" for name in theirs)):
                measure = partial(point.beside_dense, contender)
                told = partial(step_rows, options, place, contender)
                yield Unit(f"steps: {place}, {contender}", measure, told)


class Point:
    """Decode steps of a model after a context, in some rows.

    Parameters
    ----------
    name : str
        The model's.
    rows, context : int
        Rows of a step, and the tokens before and with the last one that is timed.
    options : Options
    """

    def __init__(self, name: str, rows: int, context: int, options: Options) -> None:
        self._name, self._options = name, options
        self._rows, self._context = rows, context
        self._start = context - PRIMING - WARM_UP - options.sizes.samples
        if self._start < 1:
            raise TrimtabError(
                f"--samples {options.sizes.samples}: expected less than "
                f"{context - PRIMING - WARM_UP}, as many steps fit into a context of {context}"
            )

    def beside_dense(self, contender: str) -> Result:
        """Time our dense step, twice, and another, in turn; the host's time is part of all."""
        try:
            with torch.inference_mode():
                return self._measured(contender)
        finally:
            torch.compiler.reset()  # what is compiled keeps the model and a cache

    def _measured(self, contender: str) -> Result:
        model = self._options.models.get(self._name)
        self._require_room(model, contender)
        if reason := dispatch.unavailable(model.dtype, model.device):
            raise TrimtabError(reason)
        cache = random_cache(model, self._rows, self._context)
        plan = plan_of(model, self._context)
        weights = dict.fromkeys((DENSE, AGAIN, contender), step_bytes(model))
        notes: Result = {}
        dense = dispatch.executor(plan, *cache, batch_invariant=False)
        steps: dict[str, Step] = {name: self._of_plan(dense) for name in (DENSE, AGAIN)}
        if contender.startswith("sparse"):
            sparsity = float(contender.removeprefix("sparse"))
            found, kept = larosa_plan(plan, sparsity, partial(self._by_reference, cache))
            notes["kept_shares"] = kept
            if self._rows == 1:  # several need most of the weights together
                weights[contender] -= unread_bytes(found, kept)
            executor = dispatch.executor(found, *cache, batch_invariant=False)
            steps[contender] = self._of_plan(executor)
        elif contender != DENSE:
            steps[contender] = self._of_transformers(model, contender)
        before = read_rates(self._options)
        times = interleave(steps, self._options.sizes.samples, self._options.device)
        rates = before + read_rates(self._options)
        timed = self._context - (self._options.sizes.samples - 1) / 2  # tokens, in the mean
        context = round(self._rows * timed * _token_bytes(model))
        profiles = {
            name: profiled(steps[name], self._options.device) for name in (DENSE, contender)
        }
        return {
            "weights_gib": parameter_bytes(model) / 2**30,
            "executor": dispatch.describe(model.dtype, model.device),
            "read_bytes_per_s": rates,
            **notes,
            "rows": {
                name: self._row(own, times[DENSE], weights[name] + context, middle(rates))
                | {"profile": profiles.get(name)}
                for name, own in times.items()
            },
        }

    def _row(
        self, own: list[float], dense: list[float], nbytes: int, rate: float
    ) -> dict[str, Any]:
        """Return what samples of a step amount to, in microseconds like those of the dense one."""
        seed, count = self._options.seed, len(own)
        return {
            "ms": ratio(own, [1e3] * count, paired=True, seed=seed),
            "speedup": ratio(dense, own, paired=True, seed=seed),
            "bytes": nbytes,
            "of_read_share": ratio([1e6 * nbytes / rate] * count, own, paired=True, seed=seed),
            "samples_us": own,
        }

    def _of_plan(self, executor: PlanExecutor) -> Step:
        """Return a step of our executor, whose position is the next one at every call.

        Its first position is later than `start`, as it needs no calls to compile.
        """
        tokens = torch.full((self._rows,), TOKEN)
        slots = torch.arange(self._rows)
        positions = torch.full_like(tokens, self._start + PRIMING - 1)

        def step() -> Tensor:
            positions.add_(1)
            return executor.step(tokens, slots, positions.clamp(max=self._context - 1))

        return step

    def _by_reference(self, cache: tuple[list[Tensor], list[Tensor]], plan: DecodePlan) -> Tensor:
        """Run a plan as its definition says, at some of the positions that are timed."""
        device = cache[0][0].device
        timed = torch.linspace(self._start + PRIMING, self._context - 1, FITTED, device=device)
        tokens = torch.full((FITTED,), TOKEN, device=device)
        return decode_step(plan, *cache, tokens, torch.zeros_like(tokens), timed.long())

    def _of_transformers(self, model: PreTrainedModel, contender: str) -> Step:
        """Return a step of the model's modules on a cache of transformers.

        cuDNN, where the library chooses it for attention, plans anew for every length, which counts
        where a cache grows.
        """
        name = contender.removeprefix("transformers, ")
        cache: Cache = DynamicCache(config=model.config)
        if name in (STATIC, COMPILED):
            cache = StaticCache(model.config, max_cache_len=self._context + 1)
        keys, values = random_cache(model, 1, self._start)
        states = [
            (key.transpose(1, 2), value.transpose(1, 2))
            for key, value in zip(keys, values, strict=True)
        ]
        fill([cache], states, self._rows)
        tokens = torch.full((self._rows, 1), TOKEN, device=model.device)
        run: Any = torch.compile(model, mode="reduce-overhead") if name == COMPILED else model
        step: Step = in_cache(run, cache, tokens)
        if name == WITHOUT_CUDNN:
            step = attention_with(False)(step)
        for _ in range(PRIMING):
            step()
        return step

    def _require_room(self, model: PreTrainedModel, contender: str) -> None:
        """Refuse what would not fit: caches, transforms, and what memory is read at.

        Raises
        ------
        TrimtabError
        """
        kept = self._rows * self._context * _token_bytes(model)
        needed = kept + self._options.sizes.read_bytes
        if contender.startswith("sparse"):
            needed += 2 * model.config.num_hidden_layers * model.config.hidden_size**2
        elif contender != DENSE:
            # Theirs, the states that fill it, and the copy of a layer while it grows.
            needed += kept + kept // self._rows + kept // model.config.num_hidden_layers
        remedy = f"leave out --model {self._name}, or use a card with more memory"
        require_room(needed, self._options, remedy)


def _token_bytes(model: PreTrainedModel) -> int:
    return CacheShape.of(model.config).token_bytes(model.dtype)
