"""Fair timing: steps run in turn, in drawn order, and comparisons of their times."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

import numpy as np
import torch

from kv_parts.setting import Record
from trimtab.evaluation.intervals import ratio
from trimtab.evaluation.metrics.metric import drawn

SEED = 0  # of the order
WARM_UP = 3
REFERENCES = ("dynamic", "static")  # with whose times the others are compared
Samples = dict[str, list[float]]


def microseconds(step: Callable[[], Any], device: str) -> float:
    """Return how long a step takes, including its work on a GPU."""
    _settle(device)
    started = time.perf_counter_ns()
    step()
    _settle(device)
    return (time.perf_counter_ns() - started) / 1e3


def interleave(
    steps: Mapping[str, Callable[[], Any]], samples: int, device: str, warm_up: int = WARM_UP
) -> Samples:
    """Return the microseconds of steps run in turn, so that disturbances affect them alike.

    The order is drawn for every sample. The first `warm_up` samples are discarded.
    """
    order = Random(SEED)
    times: Samples = {name: [] for name in steps}
    for sample in range(-warm_up, samples):
        for name in drawn(order, [*steps]):
            taken = microseconds(steps[name], device)
            if sample >= 0:
                times[name].append(round(taken, 3))
    return times


def compared(times: Samples, name: str, seed: int) -> Record:
    """Return the mean time of a step, and those of the references relative to it.

    The ratio of a reference to itself is None.
    """
    own = times[name]
    return {"mean_us": float(np.mean(own))} | {
        f"{other}_over_it": None
        if other == name
        else ratio(times[other], own, paired=True, seed=seed)
        for other in REFERENCES
    }


def _settle(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()
