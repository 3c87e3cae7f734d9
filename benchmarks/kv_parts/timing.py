"""Time, fairly shared out: steps in turning order, and how their times compare."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from kv_parts.setting import Record
from trimtab.evaluation.intervals import ratio

WARM_UP = 3
REFERENCES = ("dynamic", "static")  # whose times others are compared with
Samples = dict[str, list[float]]


def microseconds(step: Callable[[], Any], device: str) -> float:
    """Return how long a step takes, what it starts on a GPU included."""
    _settle(device)
    started = time.perf_counter_ns()
    step()
    _settle(device)
    return (time.perf_counter_ns() - started) / 1e3


def interleave(
    steps: Mapping[str, Callable[[], Any]], samples: int, device: str, warm_up: int = WARM_UP
) -> Samples:
    """Return the microseconds of steps taken in turn, so that they are disturbed alike.

    Who begins changes from sample to sample; the first `warm_up` samples are not kept.
    """
    names = list(steps)
    times: Samples = {name: [] for name in names}
    for sample in range(-warm_up, samples):
        for place in range(len(names)):
            name = names[(sample + place) % len(names)]
            taken = microseconds(steps[name], device)
            if sample >= 0:
                times[name].append(round(taken, 3))
    return times


def compared(times: Samples, name: str, seed: int) -> Record:
    """Return a step's mean time, and how much longer references took; None for itself."""
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
