"""Decode steps on a growing cache: those that begin a page beside the others."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from result_tables import with_interval
from transformers import PreTrainedModel

from gpu_parts.models import plan_of
from gpu_parts.unit import NO_AIM, Options, Result, Row
from trimtab.errors import TrimtabError
from trimtab.models.facts import CacheShape
from trimtab.resampling import resampled
from trimtab.vattention.layout import Geometry
from trimtab.vattention.settings import Layout
from trimtab.vattention.virtual_kv import VirtualKV
from trimtab_kernels.decode_step import dispatch
from trimtab_kernels.decode_step.dispatch import PlanExecutor

MODEL_AIMED, NO_SLOWER = "llama2-7b", 1.05
BEFORE = 32  # the most steps before the first boundary of a walk
STEPS = 16  # the fewest steps of a walk
WARM_UP = 2  # steps of a walk that are not timed
LEAST_TOKENS = 4  # of a page: with fewer, no step is beside one that begins a page
TOKEN = 7
PERCENTILES = (50, 99)


@torch.inference_mode()
def boundary(options: Options, name: str, layout: Layout) -> Result:
    """Time steps as an engine takes them: the cache grows, the plan runs, and a token is known.

    The steps walk across page boundaries. Between walks all pages are given back, so that the next
    ones are new to the driver.

    Raises
    ------
    TrimtabError
        If a page holds too few tokens, or no executor runs the plan.
    """
    model, page = options.models.get(name), options.sizes.page_bytes
    shape = CacheShape.of(model.config)
    size = shape.kv_heads, shape.head_dim, model.dtype, layout
    tokens = page // Geometry(len(shape.windows), 1, 1, *size).row_bytes
    if tokens < LEAST_TOKENS:
        raise TrimtabError(
            f"a page of {page} bytes holds {tokens} tokens of {name}; expected at least "
            f"{LEAST_TOKENS}: measure another model"
        )
    if reason := dispatch.unavailable(model.dtype, model.device):
        raise TrimtabError(reason)
    before = min(tokens // 2, BEFORE)
    start = tokens - before
    walk = range(start + 1, start + 1 + max(2 * before, STEPS))
    place = {"page_group": page, "device": model.device}
    with VirtualKV(len(shape.windows), 1, walk.stop, *size, **place) as kv:
        begins, others = _walks(options, model, kv, walk)
    return {
        "tokens_per_page": tokens,
        "begins_page_over_others": _over(begins, others, options.seed),
        **{f"begins_page_{key}": value for key, value in _percentiles(begins).items()},
        **{f"others_{key}": value for key, value in _percentiles(others).items()},
        "begins_page_samples_us": begins,
        "others_samples_us": others,
    }


def _walks(
    options: Options, model: PreTrainedModel, kv: VirtualKV, walk: range
) -> tuple[list[float], list[float]]:
    """Return the microseconds of steps that begin a page, and of the others."""
    plan = plan_of(model, walk.stop)
    executor = dispatch.executor(plan, kv.keys, kv.values, batch_invariant=False)
    executor.refresh_head()
    begins: list[float] = []
    others: list[float] = []
    _walk(kv, executor, walk)  # what compiles, or captures a graph, does so here
    while len(begins) < options.sizes.crossings:
        for length, taken in _walk(kv, executor, walk)[WARM_UP:]:
            rows = [kv.geometry.page_rows(one, kv.page_bytes) for one in (length - 1, length)]
            (begins if rows[0] < rows[1] else others).append(taken)
    return begins, others


def _walk(kv: VirtualKV, executor: PlanExecutor, walk: range) -> list[tuple[int, float]]:
    """Return the length of the text after every step, and the microseconds of the step."""
    slot = kv.acquire()
    kv.ensure({slot: walk.start - 1})
    for cache in (*kv.keys, *kv.values):
        cache[slot, : walk.start - 1].normal_()
    times = []
    for length in walk:
        rows = (torch.tensor([one]) for one in (TOKEN, slot, length - 1))
        begun = time.perf_counter_ns()
        kv.ensure({slot: length})
        executor.choose(*rows).tolist()
        times.append((length, round((time.perf_counter_ns() - begun) / 1e3, 3)))
    kv.release(slot)
    kv.trim()
    return times


def _over(begins: list[float], others: list[float], seed: int) -> dict[str, float]:
    """Return the ratio of the medians with its interval."""

    def statistic(top: NDArray[Any], bottom: NDArray[Any], axis: int = -1) -> Any:
        return np.median(top, axis=axis) / np.median(bottom, axis=axis)

    return {**resampled((begins, others), statistic, False, seed)}


def _percentiles(samples: list[float]) -> dict[str, float]:
    found = np.percentile(samples, PERCENTILES)
    return {f"p{p}_us": float(t) for p, t in zip(PERCENTILES, found, strict=True)}


def boundary_rows(options: Options, what: str, result: Result) -> list[Row]:
    """Return a line for the steps that begin a page, beside the others."""
    aimed = options.device == "cuda" and what.startswith(MODEL_AIMED)
    shown = ", ".join(
        f"{kind} p50 {result[f'{key}_p50_us']:.0f} p99 {result[f'{key}_p99_us']:.0f} µs"
        for kind, key in (("they take", "begins_page"), ("others", "others"))
    )
    ratio = with_interval(result["begins_page_over_others"], 3)
    aim = f"at most {NO_SLOWER:.2f} x others" if aimed else NO_AIM
    return [
        Row(f"steps that begin a page, {what}", f"{ratio} x others at the median; {shown}", aim)
    ]
