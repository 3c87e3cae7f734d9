"""The parts that time how a cache grows: `pages` and `growth`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from kernels.decode_attention import append_kv
from kv_parts.layer import states
from kv_parts.setting import Options, Record, label, lacking, llama, open_kv, size
from kv_parts.timing import WARM_UP, Samples, interleave, microseconds
from toolkit.evaluation.intervals import ratio
from toolkit.vattention.layout import Layout
from toolkit.vattention.pages import Access, Page, PagePool, Reservation
from toolkit.vattention.storage import make_pool

PERCENTILES = (50, 90, 99)


def pages(options: Options) -> Iterator[Record]:
    """Time each call of a page's life, one page at a time."""
    for page in options.page_group:
        times: Samples = {}
        with make_pool(torch.device(options.device), page, None) as pool:
            reserved = pool.reserve(options.calls * page)
            for offset in range(0, options.calls * page, page):
                for call, step in life(pool, reserved, offset):
                    taken = microseconds(step, options.device)
                    times.setdefault(call, []).append(round(taken, 3))
            pool.free(reserved)
        for call, samples in times.items():
            found = np.percentile(samples, PERCENTILES)
            yield {
                "page_group": size(page),
                "call": call,
                **{f"p{p}_us": float(t) for p, t in zip(PERCENTILES, found, strict=True)},
                "samples_us": samples,
            }


def life(
    pool: PagePool, reserved: Reservation, offset: int
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield the calls of a page's life; each is to be made before the next is asked for."""
    page = pool.page_bytes
    made: list[Page] = []
    yield "create", lambda: made.extend(pool.create([reserved.address + offset]))
    yield "map", lambda: pool.map(reserved, offset, made)
    yield "protect", lambda: pool.protect(reserved, offset, page, Access.write)
    # As in use: a page that nothing was written to is unmapped faster.
    pool.tensor(reserved, offset, [page], [1], torch.uint8).fill_(1)
    yield "unmap", lambda: pool.unmap(reserved, offset, page)
    yield "release", lambda: pool.release(made[0])


def growth(options: Options) -> Iterator[Record]:
    """Time a token's append to one sequence, by its length, in one layer and in all of them.

    `over_shortest` is the virtual cache's time over its own at the shortest length.
    """
    for layout, page in options.timed:
        for layers in sorted({1, options.layers}):
            shortest: list[float] = []
            for length in sorted(options.lengths):
                place = {"cache": label(layout, page), "layers": layers, "length": length}
                token_bytes = 2 * options.kv_heads * options.head_dim * options.dtype.itemsize
                # Both caches, a layer's states to begin with, and a layer's copy.
                if reason := lacking((2 * layers + 2) * length * token_bytes, options):
                    yield place | {"skipped": reason}
                    continue
                times, mapped = grow(options, layers, layout, page, length)
                shortest = shortest or times["virtual"]
                own, other = times["virtual"], times["dynamic"]
                yield place | {
                    "virtual_us": float(np.mean(own)),
                    "dynamic_us": float(np.mean(other)),
                    "dynamic_over_virtual": ratio(other, own, paired=True, seed=options.seed),
                    "over_shortest": ratio(own, shortest, paired=False, seed=options.seed),
                    "times_mapped": mapped,
                    "samples_us": times,
                }


def grow(
    options: Options, layers: int, layout: Layout, page: int, length: int
) -> tuple[Samples, int]:
    """Return times of a token in both caches, and how often the virtual one mapped pages."""
    cache = DynamicCache(config=llama(options, layers))
    old, new = (states(options, 1, tokens) for tokens in (length, 1))
    for layer in range(layers):
        cache.update(old, old, layer)
    most = length + WARM_UP + options.samples
    with open_kv(options, 1, layout, page, layers=layers, max_len=most) as kv:
        slot = kv.acquire()
        kv.ensure({slot: length})

        def append() -> None:
            kv.ensure({slot: kv.length(slot) + 1})
            for keys, values in zip(kv.keys, kv.values, strict=True):
                append_kv(keys, values, new[:, :, 0], new[:, :, 0], kv.lengths)

        def concatenate() -> None:
            for layer in range(layers):
                cache.update(new, new, layer)

        before = kv.stats().growths
        steps = {"virtual": append, "dynamic": concatenate}
        times = interleave(steps, options.samples, options.device)
        return times, kv.stats().growths - before
