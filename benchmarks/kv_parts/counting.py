"""The parts of `kv.py` that count: `memory`, `budget` and `prefix`."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator, Sequence

from kv_parts.layer import held_by_layer
from kv_parts.setting import Options, Record, geometry, grid, label, lacking, open_kv
from kv_parts.trace import Trace
from toolkit.errors import TrimtabError
from toolkit.vattention.layout import Layout, committed_bytes
from toolkit.vattention.pages import KVOutOfMemory
from toolkit.vattention.virtual_kv import VirtualKV

BLOCK = 16  # tokens in a block of a paged cache
PAGED = f"paged, {BLOCK} tokens a block"
REQUESTS, PREFIX, TAILS = 64, 1000, (50, 300)
SYSTEM = "by the system"
LAYER = "one layer by the system, times layers"
ARITHMETIC = "arithmetic"
STILL = 0.1  # seconds


def memory(options: Options) -> Iterator[Record]:
    """Count what caches hold when all sequences of the trace are complete, and none is gone.

    `held` is without the pages that a virtual cache prepares ahead, which `peak` is with; a
    dynamic cache's peak is while one layer has its old and its new keys side by side.
    """
    trace: Trace = options.trace
    lengths = trace.lengths
    slots, one = len(lengths), geometry(options, len(lengths))
    live, static = sum(lengths) * one.token_bytes, one.static_bytes

    def row(cache: str, counted: str, exact: int, held: int, peak: int) -> Record:
        return {
            "cache": cache,
            "counted": counted,
            "live_bytes": live,
            "arithmetic_bytes": exact,
            "held_bytes": held,
            "peak_bytes": peak,
            "wasted_over_live_share": held / live - 1,
            "saved_share": 1 - held / static,
            "saved_at_peak_share": 1 - peak / static,
        }

    for layout, page in grid(options):
        shape, cache = geometry(options, slots, layout), label(layout, page)
        exact, allowance = committed_bytes(lengths, shape, page), slots * shape.streams * page
        if reason := lacking(exact + allowance, options):
            yield {"cache": cache, "skipped": reason}
            continue
        with open_kv(options, slots, layout, page) as kv:
            play(trace, kv)
            held, peak = weigh(kv)
        for counted in (held, peak):
            check_agreement(cache, counted, exact, allowance)
        yield row(cache, SYSTEM, exact, held, peak)
    padded = max(trace.prompts) + max(trace.outputs)
    for cache, exact, batches in (
        ("static", static, None),
        ("dynamic, each sequence alone", live, [(1, length) for length in lengths]),
        ("dynamic, one left-padded batch", slots * padded * one.token_bytes, [(slots, padded)]),
    ):
        if reason := lacking(2 * exact // options.layers, options):
            yield {"cache": cache, "skipped": reason}
            continue
        layer, most = held_by_layer(options, slots, batches)
        held = layer * options.layers
        yield row(cache, LAYER, exact, held, held + most - layer) | {
            "layer": {"held_bytes": layer, "peak_bytes": most}
        }
    paged = paged_bytes(lengths, one.token_bytes)
    yield row(PAGED, ARITHMETIC, paged, paged, paged)


def play(trace: Trace, kv: VirtualKV) -> None:
    """Grow a slot for every sequence of a trace, to its end."""
    slots = [kv.acquire() for _ in trace.prompts]
    for lengths in trace.steps():
        kv.ensure({slots[index]: length for index, length in lengths.items()})


def weigh(kv: VirtualKV) -> tuple[int, int]:
    """Return what the system counts of a cache without pages that nothing is in, and with them."""
    peak = -1
    while peak != (now := kv.stats().measured):
        # Pages are prepared in the background: they are all there when no more come.
        peak = now
        time.sleep(STILL)
    kv.trim()
    return kv.stats().measured, peak


def check_agreement(cache: str, counted: int, exact: int, allowance: int) -> None:
    """Raise `TrimtabError` if the system counts other bytes than arithmetic."""
    if abs(counted - exact) > allowance:
        raise TrimtabError(
            f"{cache}: the system counts {counted} bytes and arithmetic {exact}; expected them "
            f"within {allowance}, a page group a slot and stream. On a GPU the driver counts for "
            "all: end what else runs there"
        )


def budget(options: Options) -> Iterator[Record]:
    """Admit sequences in order of arrival, at their full length, until the next does not fit."""
    lengths = options.trace.lengths
    one = geometry(options, len(lengths))

    def row(cache: str, counted: str, gib: float, sequences: int) -> Record:
        return {
            "budget_gib": gib,
            "cache": cache,
            "counted": counted,
            "sequences": sequences,
            "of": len(lengths),
            "tokens": sum(lengths[:sequences]),
        }

    for gib in options.budgets:
        nbytes = int(gib * 2**30)
        static = min(nbytes * len(lengths) // one.static_bytes, len(lengths))
        yield row("static", ARITHMETIC, gib, static)
        for layout, page in grid(options):
            if reason := lacking(nbytes, options):
                yield {"budget_gib": gib, "cache": label(layout, page), "skipped": reason}
                continue
            sequences = admitted_by_kv(options, layout, page, nbytes)
            yield row(label(layout, page), "until refused", gib, sequences)
        yield row(PAGED, ARITHMETIC, gib, admitted_by_paged(lengths, nbytes, one.token_bytes))


def admitted_by_kv(options: Options, layout: Layout, page: int, nbytes: int) -> int:
    lengths = options.trace.lengths
    with open_kv(options, len(lengths), layout, page, budget=nbytes) as kv:
        for admitted, length in enumerate(lengths):
            try:
                kv.ensure({kv.acquire(): length})
            except KVOutOfMemory:
                return admitted
    return len(lengths)


def admitted_by_paged(lengths: Sequence[int], nbytes: int, token_bytes: int) -> int:
    counts = range(len(lengths) + 1)
    return max(n for n in counts if paged_bytes(lengths[:n], token_bytes) <= nbytes)


def paged_bytes(lengths: Iterable[int], token_bytes: int) -> int:
    """Return the bytes of the blocks that a paged cache needs, its tables not counted."""
    return sum(-(-length // BLOCK) for length in lengths) * BLOCK * token_bytes


def prefix(options: Options) -> Iterator[Record]:
    """Fork requests from one that holds their common prefix, and grow each by a tail of its own.

    `held` and `peak` are as in `memory`.
    """
    draw = random.Random(options.seed)
    outputs = options.trace.outputs
    cases = {
        f"{TAILS[0]} to {TAILS[1]} tokens": [draw.randint(*TAILS) for _ in range(REQUESTS)],
        "the trace's outputs": [outputs[index % len(outputs)] for index in range(REQUESTS)],
    }
    for name, tails in cases.items():
        if (longest := PREFIX + max(tails)) > options.max_len:
            raise TrimtabError(f"--max-len {options.max_len}: the part prefix needs {longest}")
        for record in shared(options, tails):
            yield {"tails": name, **record}


def shared(options: Options, tails: Sequence[int]) -> Iterator[Record]:
    for layout, page in grid(options):
        shape, cache = geometry(options, REQUESTS, layout), label(layout, page)
        ideal = (PREFIX + sum(tails)) * shape.token_bytes
        common = PREFIX * shape.row_bytes // page
        rows = common + sum(shape.page_rows(PREFIX + tail, page) - common for tail in tails)
        exact, allowance = (count * shape.streams * page for count in (rows, REQUESTS))
        if reason := lacking(exact + allowance, options):
            yield {"cache": cache, "skipped": reason}
            continue
        with open_kv(options, REQUESTS, layout, page) as kv:
            slots = [kv.acquire()]
            kv.ensure({slots[0]: PREFIX})
            slots += [kv.fork_prefix(slots[0], PREFIX) for _ in tails[1:]]
            kv.ensure({slot: PREFIX + tail for slot, tail in zip(slots, tails, strict=True)})
            held, peak = weigh(kv)
        for counted in (held, peak):
            check_agreement(cache, counted, exact, allowance)
        yield {
            "cache": cache,
            "prefix_and_tails_bytes": ideal,
            "arithmetic_bytes": exact,
            "held_bytes": held,
            "peak_bytes": peak,
            "over_prefix_and_tails_share": held / ideal - 1,
            "at_peak_share": peak / ideal - 1,
            "unshared_arithmetic_bytes": ideal + (REQUESTS - 1) * PREFIX * shape.token_bytes,
        }
