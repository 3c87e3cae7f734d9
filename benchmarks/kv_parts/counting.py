"""The parts of `kv.py` that count the memory of a trace: `memory` and `budget`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from kv_parts.layer import held_by_layer
from kv_parts.setting import Options, Record, geometry, grid, label, lacking, open_kv
from kv_parts.trace import Trace
from kv_parts.weighing import check_agreement, weigh
from trimtab.vattention.layout import committed_bytes
from trimtab.vattention.pages import KVOutOfMemory
from trimtab.vattention.settings import Layout
from trimtab.vattention.virtual_kv import VirtualKV

BLOCK = 16  # tokens in a block of a paged cache
PAGED = f"paged, {BLOCK} tokens a block"
SYSTEM = "by the system"
LAYER = "one layer by the system, times layers"
ARITHMETIC = "arithmetic"


def memory(options: Options) -> Iterator[Record]:
    """Count what caches hold when all sequences of the trace are complete and none was released.

    `held` excludes the pages that a virtual cache prepares ahead; `peak` includes them. The peak of
    a dynamic cache is reached while one layer has both its old and its new keys.
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
        exact, ahead = committed_bytes(lengths, shape, page), slots * shape.planes * page
        if reason := lacking(exact + ahead, options, "lower --layers"):
            yield {"cache": cache, "skipped": reason}
            continue
        with open_kv(options, slots, layout, page) as kv:
            play(trace, kv)
            held, peak = weigh(kv)
        check_agreement(cache, exact, held, peak, ahead, options.device)
        yield row(cache, SYSTEM, exact, held, peak)
    padded = max(trace.prompts) + max(trace.outputs)
    for cache, exact, batches in (
        ("static", static, None),
        ("dynamic, each sequence alone", live, [(1, length) for length in lengths]),
        ("dynamic, one left-padded batch", slots * padded * one.token_bytes, [(slots, padded)]),
    ):
        if reason := lacking(2 * exact // options.layers, options, "give a smaller --trace"):
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


def budget(options: Options) -> Iterator[Record]:
    """Admit sequences in order of arrival, at full length, until the next one does not fit."""
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
            if reason := lacking(nbytes, options, "lower --budgets"):
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
    """Return the bytes of the blocks that a paged cache needs, without its tables."""
    return sum(-(-length // BLOCK) for length in lengths) * BLOCK * token_bytes
