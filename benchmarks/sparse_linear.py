"""Selection and sparse product, compared with the library's dense product, for one token.

    python benchmarks/sparse_linear.py [--device cpu|cuda] [--shapes 4096x4096 …] [--out FILE.json]

Both run in one process, in drawn order, on so many weights that every product reads its weight from
memory and not from a cache, as a decode step of a model does. Prints a table; the file keeps every
sample.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import torch
from arguments import command, sizes
from torch import Tensor
from torch.nn.functional import linear

from trimtab.environment import describe_environment
from trimtab.evaluation.intervals import ratio
from trimtab_kernels.sparse_linear import keep_topk, kernel_name, sparse_linear

# The products of SmolLM2-135M (q and o, k and v, gate and up, down), then those of larger models.
SHAPES = (
    "576x576", "576x192", "576x1536", "1536x576",
    "4096x4096", "2048x8192", "8192x2048", "4096x11008",
)  # fmt: skip
SPARSITIES = (0.0, 0.25, 0.4, 0.5, 0.6, 0.75)
DTYPES = {"cpu": (torch.float32, torch.bfloat16), "cuda": (torch.float16, torch.bfloat16)}
COLD_BYTES = 256 * 2**20
SAMPLES = 100
WARM_UP = 10
SEED = 0
# The GPU spins for this many cycles while the timed launches queue up, so that the time is that of
# the kernels and not that of launching them from Python.
HEAD_START_CYCLES = 1_000_000

Steps = list[Callable[[], Any]]


def time_on_cpu(steps: Steps) -> list[float]:
    """Return the microseconds of each step."""
    times = [time.perf_counter_ns()]
    for step in steps:
        step()
        times.append(time.perf_counter_ns())
    return [(end - start) / 1e3 for start, end in pairwise(times)]


def time_on_cuda(steps: Steps) -> list[float]:
    """Return the microseconds of each step, between events on the GPU."""
    torch.cuda._sleep(HEAD_START_CYCLES)
    events = [torch.cuda.Event(enable_timing=True) for _ in range(len(steps) + 1)]
    events[0].record()
    for step, event in zip(steps, events[1:], strict=True):
        step()
        event.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) * 1e3 for start, end in pairwise(events)]


def measure(d: int, n: int, dtype: torch.dtype, device: str) -> Iterator[dict[str, Any]]:
    """Yield one row of the table per sparsity."""
    clock = time_on_cuda if device == "cuda" else time_on_cpu
    count = -(-COLD_BYTES // (d * n * dtype.itemsize)) + 1
    input_major = [torch.randn(d, n, device=device).to(dtype) for _ in range(count)]
    output_major = [weight.t().contiguous() for weight in input_major]
    x = torch.randn(1, d, device=device).to(dtype)
    turn, order = 0, Random(SEED)
    for sparsity in SPARSITIES:
        keep = round((1 - sparsity) * d)
        row: dict[str, Any] = {"dense_us": [], "selection_us": [], "product_us": []}
        for sample in range(-WARM_UP, SAMPLES):
            turn = (turn + 1) % count
            dense, sparse = pair(x, output_major[turn], input_major[turn], keep)
            if order.random() < 0.5:
                times = clock(dense) + clock(sparse)
            else:
                selection, product = clock(sparse)
                times = [*clock(dense), selection, product]
            if sample >= 0:
                for samples, value in zip(row.values(), times, strict=True):
                    samples.append(value)
        yield {"d": d, "n": n, "dtype": name(dtype), "sparsity": sparsity} | row


def pair(x: Tensor, output_major: Tensor, input_major: Tensor, keep: int) -> tuple[Steps, Steps]:
    selected = x

    def select() -> None:
        nonlocal selected
        selected = keep_topk(x, keep)

    return [lambda: linear(x, output_major)], [select, lambda: sparse_linear(selected, input_major)]


def summarize(row: dict[str, Any]) -> str:
    """Add the ratio of total times to a row, and return it as a line of the table."""
    total = [a + b for a, b in zip(row["selection_us"], row["product_us"], strict=True)]
    row["ratio"] = ratio(row["dense_us"], total, paired=True, seed=SEED)
    dense, selection, sparse = (
        sum(v) / SAMPLES for v in (row["dense_us"], row["selection_us"], total)
    )
    estimate, low, high = (row["ratio"][key] for key in ("estimate", "low", "high"))
    return (
        f"| {row['d']} x {row['n']} | {row['dtype']} | {row['sparsity']:g} | {dense:.1f} "
        f"| {selection:.1f} | {sparse:.1f} | {estimate:.2f} [{low:.2f}, {high:.2f}] "
        f"| {estimate * (1 - row['sparsity']):.0%} |"
    )


def name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--device", choices=DTYPES, default="cpu")
    pairs = partial(sizes, like="4096x11008")
    parser.add_argument("--shapes", nargs="+", type=pairs, default=SHAPES, help="inputs x outputs")
    parser.add_argument("--out", type=Path, help="a JSON file for every sample")
    arguments = parser.parse_args()
    torch.manual_seed(SEED)
    dtypes = DTYPES[arguments.device]
    result: dict[str, Any] = {
        "command": command(),
        "environment": describe_environment(SEED),
        "kernels": {name(dtype): kernel_name(arguments.device, dtype) for dtype in dtypes},
        "rows": [],
    }
    print(*result["kernels"].values(), sep="\n")
    columns = ("shape", "dtype", "sparsity", "dense µs", "selection µs", "total µs")
    print("\n|", " | ".join((*columns, "dense / total", "of 1/(1-p)")), "|")
    print("|---|---|---|---|---|---|---|---|")
    for dtype in dtypes:
        for shape in arguments.shapes:
            d, n = map(int, shape.split("x"))
            for row in measure(d, n, dtype, arguments.device):
                print(summarize(row), flush=True)
                result["rows"].append(row)
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
