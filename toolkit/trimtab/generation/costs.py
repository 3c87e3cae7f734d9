"""What a step over several rows takes, measured where it is going to run."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
from scipy.optimize import isotonic_regression
from scipy.stats import norm
from torch import Tensor
from transformers import PreTrainedModel

from trimtab.generation.cost_cache import StepCosts, keep, kept, subject_of
from trimtab.generation.executor import MOST_ROWS, uncounted
from trimtab.generation.forward import Forward, Span
from trimtab.vattention.virtual_kv import VirtualKV

ROWS = (1, 2, 3, 4, 6, 8, MOST_ROWS)  # timed; between them, costs are interpolated
DEPTH = 128  # tokens of context
FEW = 4  # the first of them, on which drafts hang most
LEAST, LEAST_OF_FEW = 3, 5  # rounds over all, and over few
PRECISE, ENOUGH = 0.02, 3.0  # of few: the standard error, or else the seconds, at which rounds end


_measured: WeakKeyDictionary[PreTrainedModel, tuple[object, StepCosts]] = WeakKeyDictionary()


def step_costs(model: PreTrainedModel, forward: Forward, kv: VirtualKV, room: int) -> StepCosts:
    """Return the costs of a model's steps as it is now, measured once a day on a machine.

    Parameters
    ----------
    model : PreTrainedModel
    forward : Forward
        Of this model.
    kv : VirtualKV
        With a free slot; what is written there is dropped.
    room : int
        The most tokens of a slot.
    """
    depth, threads = min(DEPTH, room), torch.get_num_threads()
    key = forward.parts, forward.executor.name, threads, len(kv.lengths), depth
    if model not in _measured or _measured[model][0] != key:
        subject = subject_of(model, forward.executor.name, kv, depth)
        found = kept(subject, min(MOST_ROWS, depth))
        if found is None:
            began = time.perf_counter()
            relative = _measure(model, forward, kv, depth)
            seconds = time.perf_counter() - began
            found = StepCosts(relative, f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}", seconds)
            keep(subject, found)
        _measured[model] = key, found
    return _measured[model][1]


@torch.inference_mode()
def _measure(
    model: PreTrainedModel, forward: Forward, kv: VirtualKV, depth: int
) -> tuple[float, ...]:
    """Time steps over `ROWS` rows in turn.

    The rows are different tokens of one text: where a method skips weights, a step skips those
    that none of its rows needs, and equal rows would need the same.
    """
    embedding = cast(Tensor, model.get_input_embeddings().weight)
    tokens = np.random.default_rng(0).integers(len(embedding), size=depth).tolist()
    rows = sorted({min(number, depth) for number in ROWS})
    slot = kv.acquire()
    try:
        kv.ensure({slot: depth})

        def step(number: int) -> list[int]:
            start = depth - number
            span = Span(slot, tokens[start:], start)
            if forward.together:
                return forward.choose([span])
            one = number == 1
            logits = forward.decode({slot: tokens[-1]}) if one else forward.verify([span])
            return cast("list[int]", logits.float().argmax(-1).tolist())

        with uncounted(model):
            forward.prefill([Span(slot, tokens, 0)])
            samples = _timed([partial(step, number) for number in rows])
    finally:
        kv.release(slot)
        kv.trim()
    return _relative(rows, samples)


def _relative(rows: Sequence[int], samples: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Return the time of a step over 1, 2, ... rows, over that of one: by medians of samples.

    Where more rows took less, that is noise, and both take what they take on average.
    """
    medians = [float(np.median(own)) for own in samples]
    known = isotonic_regression(medians, weights=[len(own) for own in samples]).x
    every = np.interp(np.arange(1, rows[-1] + 1), rows, known / known[0])
    return tuple(every.tolist())


def _timed(steps: list[Callable[[], object]]) -> list[list[float]]:
    """Return the seconds that each of some steps takes, again and again, in drawn order.

    The last one, which needs the most memory, runs once before. The first few are run until their
    relative times are precise, or for so long.
    """
    steps[-1]()
    seconds: list[list[float]] = [[] for _ in steps]
    draw, started, rounds = random.Random(0), time.perf_counter(), 0
    while rounds < LEAST_OF_FEW or not (
        time.perf_counter() - started >= ENOUGH or _error(seconds[:FEW]) <= PRECISE
    ):
        turn = range(len(steps))[: None if rounds < LEAST else FEW]
        for place in draw.sample(turn, len(turn)):
            begun = time.perf_counter()
            steps[place]()
            seconds[place].append(time.perf_counter() - begun)
        rounds += 1
    return seconds


def _error(samples: Sequence[Sequence[float]]) -> float:
    """Return the standard error of the ratio of two medians, relative to it.

    All samples have one spread, relative to their medians. A few outliers do not change it.
    """
    deviations = np.concatenate([np.array(own) / np.median(own) - 1 for own in samples])
    number = len(samples[0])
    spread = np.median(np.abs(deviations)) / norm.ppf(0.75) * np.sqrt(number / (number - 1))
    of_median = np.sqrt(np.pi / 2 / number) * spread  # of normal samples
    return float(np.sqrt(2) * of_median)
