"""The part `kv`: the life of pages, what growth costs, and the memory that a driver counts."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kv_parts.counting import memory
from kv_parts.growing import by_length, pages
from kv_parts.setting import label
from kv_parts.sharing import prefix
from kv_parts.timing import microseconds
from kv_parts.trace import Trace

from gpu_parts.boundary import boundary, boundary_rows
from gpu_parts.timing import middle
from gpu_parts.unit import Options, Result, Row, Unit
from trimtab.vattention.pages import Access
from trimtab.vattention.settings import Layout
from trimtab.vattention.storage import make_pool

TRACE = Path(__file__).parents[1] / "data" / "kv-trace.json"
MAX_LEN = 8192
PERCENTILES = (50, 99)


def kv(options: Options) -> Iterator[Unit]:
    """Yield the units of this part."""
    caches = _cache_options(options)

    def alone(
        name: str, measure: Callable[[], Result], rows: Callable[[Result], list[Row]]
    ) -> Unit:
        def measured() -> Result:
            options.models.release()  # its memory is a cache's
            return measure()

        return Unit(f"kv: {name}", measured, rows)

    yield alone("life of pages", lambda: {"calls": [*pages(caches)]}, _page_rows)
    yield alone("first touch", partial(first_touch, caches), _touch_rows)
    for layout in Layout:
        yield alone(f"growth, {layout}", partial(growth, caches, layout), _growth_rows)
    yield alone("memory", lambda: {"caches": [*memory(caches)]}, _memory_rows)
    yield alone("prefix", lambda: {"caches": [*prefix(caches)]}, _prefix_rows)
    for name in options.model:
        for layout in Layout:
            what = f"{name}, {layout}"
            measure = partial(boundary, options, name, layout)
            rows = partial(boundary_rows, options, what)
            yield Unit(f"kv: page boundaries, {what}", measure, rows)


def _cache_options(options: Options) -> Options:
    """Return what `kv.py` is told by its command line."""
    layers, heads, kv_heads, head_dim = options.sizes.cache
    return argparse.Namespace(
        device=options.device,
        seed=options.seed,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        dtype=torch.bfloat16,
        max_len=MAX_LEN,
        layout=[*Layout],
        page_group=[options.sizes.page_bytes],
        trace=Trace.load(TRACE, MAX_LEN),
        calls=options.sizes.calls,
        samples=options.sizes.samples,
        lengths=options.sizes.cache_lengths,
    )


def first_touch(caches: Options) -> Result:
    """Time writing a page for the first time, and then again."""
    (page,) = caches.page_group
    times: dict[str, list[float]] = {"first": [], "again": []}
    with make_pool(torch.device(caches.device), page, None) as pool:
        reserved = pool.reserve(caches.calls * page)
        for offset in range(0, caches.calls * page, page):
            made = pool.create([reserved.address + offset])
            pool.map(reserved, offset, made)
            pool.protect(reserved, offset, page, Access.write)
            _write(partial(pool.tensor, reserved, offset, [page], [1], torch.uint8), times, caches)
            pool.unmap(reserved, offset, page)
            pool.release(made[0])
        pool.free(reserved)
    return {"page_bytes": page, "us": times}


def _write(make: Callable[[], Any], times: dict[str, list[float]], caches: Options) -> None:
    """Write to a page twice; its tensor is gone afterwards, so that it can be unmapped."""
    written = make()
    for own in times.values():
        own.append(round(microseconds(lambda: written.fill_(1), caches.device), 3))


def growth(caches: Options, layout: Layout) -> Result:
    """Time appending a token to one sequence in all layers, by its length."""
    (page,) = caches.page_group
    rows = [*by_length(caches, caches.layers, layout, page)]
    for row in rows:
        found = np.percentile(row["samples_us"], PERCENTILES)
        row |= {f"p{p}_us": float(t) for p, t in zip(PERCENTILES, found, strict=True)}
    return {"cache": label(layout, page), "lengths": rows}


def _page_rows(result: Result) -> list[Row]:
    return [
        Row(f"page of {one['page_group']}, {one['call']}", _percentiles(one))
        for one in result["calls"]
    ]


def _touch_rows(result: Result) -> list[Row]:
    shown = ", ".join(f"{name} {middle(times):.3g}" for name, times in result["us"].items())
    return [Row("writing a page, µs, medians", shown)]


def _growth_rows(result: Result) -> list[Row]:
    return [
        Row(
            f"appending a token, {result['cache']}, after {one['length']}",
            f"{_percentiles(one)}, pages mapped {one['times_mapped']} times",
        )
        for one in result["lengths"]
    ]


def _percentiles(record: dict[str, Any]) -> str:
    return ", ".join(f"p{p} {record[f'p{p}_us']:.3g} µs" for p in PERCENTILES)


def _memory_rows(result: Result) -> list[Row]:
    return [
        Row(
            f"16 requests, {one['cache']}, counted {one['counted']}",
            one.get("skipped")
            or f"{one['held_bytes'] / 2**30:.4g} GiB, {one['saved_share']:.1%} less than static",
        )
        for one in result["caches"]
    ]


def _prefix_rows(result: Result) -> list[Row]:
    return [
        Row(
            f"64 requests of one prefix, tails of {one['tails']}, {one['cache']}",
            one.get("skipped")
            or f"{one['held_bytes'] / 2**30:.4g} GiB, unshared by arithmetic "
            f"{one['unshared_arithmetic_bytes'] / 2**30:.4g}",
        )
        for one in result["caches"]
    ]
