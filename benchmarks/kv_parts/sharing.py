"""The part of `kv.py` that counts the memory of requests with a common prefix: `prefix`."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from kv_parts.setting import Options, Record, geometry, grid, label, lacking, open_kv
from kv_parts.weighing import check_agreement, weigh
from trimtab.errors import TrimtabError

REQUESTS, PREFIX, TAILS = 64, 1000, (50, 300)


def prefix(options: Options) -> Iterator[Record]:
    """Fork requests from one that holds their common prefix, and grow each by its own tail.

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
        exact, ahead = (count * shape.planes * page for count in (rows, REQUESTS))
        if reason := lacking(exact + ahead, options, "lower --layers"):
            yield {"cache": cache, "skipped": reason}
            continue
        with open_kv(options, REQUESTS, layout, page) as kv:
            slots = [kv.acquire()]
            kv.ensure({slots[0]: PREFIX})
            slots += [kv.fork_prefix(slots[0], PREFIX) for _ in tails[1:]]
            kv.ensure({slot: PREFIX + tail for slot, tail in zip(slots, tails, strict=True)})
            held, peak = weigh(kv)
        check_agreement(cache, exact, held, peak, ahead, options.device)
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
