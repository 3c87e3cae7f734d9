"""Clocks for what a GPU does, and for what the host does to have it done."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from random import Random
from typing import Any

import torch
from sparse_linear import time_on_cpu, time_on_cuda

from gpu_parts.unit import Options
from trimtab.errors import first_line
from trimtab.evaluation.metrics.metric import drawn

SEED = 0  # of the order
WARM_UP = 2
READS = 5
HOST_SAMPLES = 5
Call = Callable[[], Any]
Clock = Callable[[], float]


def settle(device: str) -> None:
    """Wait until the GPU has done all that it was asked to."""
    if device == "cuda":
        torch.cuda.synchronize()


def microseconds(call: Call, device: str) -> float:
    """Return how long the device is busy with one call; on a GPU, between two events."""
    return sum((time_on_cuda if device == "cuda" else time_on_cpu)([call]))


def in_graph(calls: Sequence[Call], device: str) -> Clock:
    """Return what runs all calls and returns the microseconds of one of them, in the mean.

    On a GPU they are replayed from a graph, one after the other, so that neither launching them nor
    the memory that they allocate costs any time. A first call compiles the kernels, outside of it.
    """
    if device != "cuda":
        return lambda: sum(time_on_cpu(list(calls))) / len(calls)
    stream = _capturing()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls[:2]:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for call in calls:
            call()
    return lambda: microseconds(graph.replay, device) / len(calls)


@cache
def _capturing() -> torch.cuda.Stream:
    """Return the stream that all graphs are captured in; the library keeps memory for each one."""
    return torch.cuda.Stream()


@contextmanager
def attention_with(cudnn: bool) -> Iterator[None]:
    """Say whether the library may choose cuDNN for attention within the block."""
    allowed = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(cudnn)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(allowed)


def prepared(
    makers: Mapping[str, Callable[[], Clock]],
) -> tuple[dict[str, Clock], dict[str, str]]:
    """Return what the makers make by their names, and of those that fail what the error says."""
    clocks: dict[str, Clock] = {}
    failed: dict[str, str] = {}
    for name, make in makers.items():
        try:
            clocks[name] = make()
        except Exception as error:  # of many types: a compiler's, a launch's, out of memory
            failed[name] = f"{type(error).__name__}: {first_line(error)}"
    return clocks, failed


def in_turn(clocks: Mapping[str, Clock], samples: int) -> dict[str, list[float]]:
    """Return microseconds by name, taken in an order that is drawn for every round."""
    order = Random(SEED)
    times: dict[str, list[float]] = {name: [] for name in clocks}
    for sample in range(-WARM_UP, samples):
        for name in drawn(order, [*clocks]):
            taken = clocks[name]()
            if sample >= 0:
                times[name].append(round(taken, 3))
    return times


def host_microseconds(call: Call, calls: int, device: str) -> list[float]:
    """Return how long the host is busy with one call, in the mean of many that nobody waits for."""
    for _ in range(WARM_UP):
        call()
    found = []
    for _ in range(HOST_SAMPLES):
        settle(device)
        started = time.perf_counter_ns()
        for _ in range(calls):
            call()
        found.append(round((time.perf_counter_ns() - started) / calls / 1e3, 3))
    settle(device)
    return found


def read_rates(options: Options) -> list[float]:
    """Return the bytes per second at which a sum reads memory, `READS` times."""
    count = options.sizes.read_bytes // 4
    numbers = torch.ones(count, dtype=torch.float32, device=options.device)
    numbers.sum()
    times = [microseconds(numbers.sum, options.device) for _ in range(READS)]
    return [round(numbers.nbytes / taken * 1e6) for taken in times]


def middle(samples: Sequence[float]) -> float:
    """Return the median."""
    return float(statistics.median(samples))
