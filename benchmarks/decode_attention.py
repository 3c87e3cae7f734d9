"""Attention of one decode step against torch's scaled_dot_product_attention.

    python benchmarks/decode_attention.py [--device cpu|cuda] [--shapes 9x3x64 …] [--lengths 2000 …]
                                          [--slots 8 …] [--out FILE.json]

All slots have the same length, which torch's function supports without a mask. It runs on keys and
values in its preferred layout, contiguous [slots, kv_heads, length, head_dim], and on transposed
views of the memory that our kernel reads, [slots, length, kv_heads, head_dim]; both with
enable_gqa. The three run in one process in drawn order, on so many caches that each reads its keys
and values from memory and not from the processor's caches, as a decode step of a model does. Prints
a table; the file keeps every sample.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

import torch
from arguments import command, positive, sizes
from sparse_linear import COLD_BYTES, DTYPES, SEED, WARM_UP, name, time_on_cpu, time_on_cuda
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from trimtab.environment import describe_environment
from trimtab.evaluation.intervals import ratio
from trimtab_kernels.decode_attention import decode_attention, kernel_name

# Query heads, KV heads and head_dim: SmolLM2-135M's, Llama-3-8B's.
SHAPES = ("9x3x64", "32x8x128")
LENGTHS = (2000,)
SLOTS = (1, 8)
SAMPLES = 60
KINDS = ("ours_us", "contiguous_us", "views_us")


def measure(shape: str, length: int, slots: int, dtype: torch.dtype, device: str) -> dict[str, Any]:
    """Return a row of the table, with the samples of all `KINDS`."""
    clock = time_on_cuda if device == "cuda" else time_on_cpu
    heads, kv_heads, width = map(int, shape.split("x"))
    cache = torch.Size((slots, length, kv_heads, width))
    size = 2 * cache.numel() * dtype.itemsize
    count = -(-COLD_BYTES // size) + 1
    ours = [[torch.randn(cache, device=device).to(dtype) for _ in "kv"] for _ in range(count)]
    theirs = [[tensor.transpose(1, 2).contiguous() for tensor in pair] for pair in ours]
    query = torch.randn(slots, heads, width, device=device).to(dtype)
    lengths = torch.full((slots,), length, dtype=torch.int32, device=device)
    samples: dict[str, list[float]] = {kind: [] for kind in KINDS}
    order = Random(SEED)
    for sample in range(-WARM_UP, SAMPLES):
        turn = sample % count
        steps = three(query, lengths, ours[turn], theirs[turn])
        for kind in order.sample(KINDS, len(KINDS)):
            (time,) = clock([steps[kind]])
            if sample >= 0:
                samples[kind].append(time)
    measured = {"shape": shape, "length": length, "slots": slots, "dtype": name(dtype)}
    return measured | {"bytes": size} | samples


def three(
    query: Tensor, lengths: Tensor, ours: list[Tensor], theirs: list[Tensor]
) -> dict[str, Callable[[], Tensor]]:
    scale = query.shape[-1] ** -0.5

    def library(keys: Tensor, values: Tensor) -> Tensor:
        rows = query[:, :, None]
        return scaled_dot_product_attention(rows, keys, values, scale=scale, enable_gqa=True)

    return {
        "ours_us": lambda: decode_attention(query, *ours, lengths, scale),
        "contiguous_us": lambda: library(*theirs),
        "views_us": lambda: library(*(tensor.transpose(1, 2) for tensor in ours)),
    }


def summarize(row: dict[str, Any]) -> str:
    """Add the ratios of total times to a row, and return it as a line of the table."""
    cells = [row["shape"], row["length"], row["slots"], row["dtype"]]
    cells += [f"{sum(row[kind]) / SAMPLES:.0f}" for kind in KINDS]
    cells.append(f"{row['bytes'] * SAMPLES / sum(row['ours_us']) / 1e3:.1f}")
    for kind in KINDS[1:]:
        found = ratio(row[kind], row["ours_us"], paired=True, seed=SEED)
        row[kind.replace("_us", "_ratio")] = found
        cells.append(f"{found['estimate']:.2f} [{found['low']:.2f}, {found['high']:.2f}]")
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--device", choices=DTYPES, default="cpu")
    triples = partial(sizes, like="32x8x128")
    add("--shapes", nargs="+", type=triples, default=SHAPES, help="heads x KV heads x head_dim")
    add("--lengths", nargs="+", type=positive, default=LENGTHS, help="tokens per slot")
    add("--slots", nargs="+", type=positive, default=SLOTS)
    add("--out", type=Path, help="a JSON file for every sample")
    arguments = parser.parse_args()
    for shape in arguments.shapes:
        heads, kv_heads, _ = map(int, shape.split("x"))
        if heads % kv_heads:
            parser.error(f"--shapes {shape}: expected heads that are a multiple of {kv_heads}")
    torch.manual_seed(SEED)
    dtypes = DTYPES[arguments.device]
    result: dict[str, Any] = {
        "command": command(),
        "environment": describe_environment(SEED),
        "kernels": {name(dtype): kernel_name(arguments.device, dtype) for dtype in dtypes},
        "rows": [],
    }
    print(*result["kernels"].values(), sep="\n")
    columns = ("heads", "tokens", "slots", "dtype", "ours µs", "contiguous µs", "views µs", "GB/s")
    print("\n|", " | ".join((*columns, "contiguous / ours", "views / ours")), "|")
    print("|---" * (len(columns) + 2) + "|")
    cases = product(dtypes, arguments.shapes, arguments.lengths, arguments.slots)
    for dtype, shape, length, slots in cases:
        row = measure(shape, length, slots, dtype, arguments.device)
        print(summarize(row), flush=True)
        result["rows"].append(row)
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
