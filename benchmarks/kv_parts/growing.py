"""The parts that time how a cache grows: `pages` and `growth`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from kv_parts.layer import states
from kv_parts.setting import (
    Options,
    Record,
    label,
    lacking,
    layer_bytes,
    llama,
    open_kv,
    size,
)
from kv_parts.timing import WARM_UP, Samples, interleave, microseconds
from trimtab.evaluation.intervals import ratio
from trimtab.vattention.pages import Access, Page, Reservation
from trimtab.vattention.pool import PagePool
from trimtab.vattention.settings import Layout
from trimtab.vattention.storage import make_pool
from trimtab.vattention.virtual_kv import VirtualKV
from trimtab_kernels.decode_attention import append_kv

PERCENTILES = (50, 90, 99)
MORE = 16  # samples per requested one, of steps that take only microseconds


def pages(options: Options) -> Iterator[Record]:
    """Time every call in the life of a page, one page at a time."""
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
    """Yield the calls in the life of a page; each must be made before the next is requested."""
    page = pool.page_bytes
    made: list[Page] = []
    yield "create", lambda: made.extend(pool.create([reserved.address + offset]))
    yield "map", lambda: pool.map(reserved, offset, made)
    yield "protect", lambda: pool.protect(reserved, offset, page, Access.write)
    # As in real use: a page that was never written is unmapped faster.
    pool.tensor(reserved, offset, [page], [1], torch.uint8).fill_(1)
    yield "unmap", lambda: pool.unmap(reserved, offset, page)
    yield "release", lambda: pool.release(made[0])


def growth(options: Options) -> Iterator[Record]:
    """Time appending a token to one sequence, by its length, in one layer and in all of them.

    First the virtual cache alone, at all lengths in turn; then in turn with a dynamic cache, at
    each length. The two measurements differ: between two appends, the copies of the dynamic cache
    leave the processor's caches cold, and give the background thread time to prepare pages.
    """
    lengths, layer, remedy = sorted(options.lengths), layer_bytes(options), "lower --lengths"
    for layout, page in options.timed:
        for layers in sorted({1, options.layers}):
            place = {"cache": label(layout, page), "layers": layers}
            if reason := lacking(sum(lengths) * layers * layer, options, remedy):
                yield place | {"skipped": reason}
            else:
                yield from (place | row for row in by_length(options, layers, layout, page))
            for length in lengths:
                # Both caches, the initial states of a layer, and the copy of a layer.
                if reason := lacking((2 * layers + 2) * length * layer, options, remedy):
                    yield place | {"length": length, "skipped": reason}
                    continue
                times = with_dynamic(options, layers, layout, page, length)
                own, other = times["virtual"], times["dynamic"]
                yield place | {
                    "length": length,
                    "virtual_us": float(np.mean(own)),
                    "dynamic_us": float(np.mean(other)),
                    "dynamic_over_virtual": ratio(other, own, paired=True, seed=options.seed),
                    "samples_us": times,
                }


def by_length(options: Options, layers: int, layout: Layout, page: int) -> Iterator[Record]:
    """Yield the times of a token in a virtual cache, at all lengths in turn."""
    samples = MORE * options.samples
    with ExitStack() as stack:
        caches = {}
        for length in sorted(options.lengths):
            kv = open_grown(options, layers, layout, page, length, samples)
            caches[str(length)] = stack.enter_context(kv)
        steps = {length: appending(options, kv) for length, kv in caches.items()}
        before = {length: kv.stats().growths for length, kv in caches.items()}
        times = interleave(steps, samples, options.device)
        shortest = next(iter(times.values()))
        for length, own in times.items():
            yield {
                "length": int(length),
                "virtual_us": float(np.mean(own)),
                "over_shortest": ratio(own, shortest, paired=True, seed=options.seed),
                "times_mapped": caches[length].stats().growths - before[length],
                "samples_us": own,
            }


def with_dynamic(options: Options, layers: int, layout: Layout, page: int, length: int) -> Samples:
    """Return the times of a token in a virtual and in a dynamic cache, in turn."""
    cache = DynamicCache(config=llama(options, layers))
    old, new = (states(options, 1, tokens) for tokens in (length, 1))
    for layer in range(layers):
        cache.update(old, old, layer)

    def concatenate() -> None:
        for layer in range(layers):
            cache.update(new, new, layer)

    with open_grown(options, layers, layout, page, length, options.samples) as kv:
        steps = {"virtual": appending(options, kv), "dynamic": concatenate}
        return interleave(steps, options.samples, options.device)


@contextmanager
def open_grown(
    options: Options, layers: int, layout: Layout, page: int, length: int, samples: int
) -> Iterator[VirtualKV]:
    """Yield a cache with one sequence of a given length, and addresses for the samples."""
    most = length + WARM_UP + samples
    with open_kv(options, 1, layout, page, layers=layers, max_len=most) as kv:
        kv.ensure({kv.acquire(): length})
        yield kv


def appending(options: Options, kv: VirtualKV) -> Callable[[], None]:
    """Return a step that appends a token to the only sequence of a cache, in all layers."""
    new = states(options, 1, 1)[:, :, 0]

    def append() -> None:
        kv.ensure({0: kv.length(0) + 1})
        for keys, values in zip(kv.keys, kv.values, strict=True):
            append_kv(keys, values, new, new, kv.lengths)

    return append
