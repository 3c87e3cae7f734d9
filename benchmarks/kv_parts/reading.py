"""Attention of a decode step alone, by the pages that keys and values lie in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

import numpy as np
import torch

from kv_parts.decoding import fill
from kv_parts.setting import Options, Record, label, lacking, layer_bytes, open_kv
from kv_parts.timing import interleave
from trimtab.backing import huge_cache_bytes
from trimtab.evaluation.intervals import ratio
from trimtab.vattention.settings import Layout
from trimtab.vattention.virtual_kv import VirtualKV
from trimtab_kernels.decode_attention import decode_attention

AGAIN = ", again"


def reading(options: Options) -> Iterator[Record]:
    """Time the attention of one token to `context` others, in `decode_layers` layers.

    The first size of page is timed on two caches: what their ratio is off from 1 is an error of the
    measurement. `huge_share` is how much of a cache the system says is in huge pages of the host.
    """
    names = {label(Layout.slot, page): page for page in options.page_group}
    first, page = next(iter(names.items()))
    names[first + AGAIN] = page
    place = {"batch": options.batch, "context": options.context, "layers": options.decode_layers}
    tokens = len(names) * options.batch * options.context
    needed = options.decode_layers * tokens * layer_bytes(options)
    if reason := lacking(needed, options, "lower --decode-layers, --batch or --context"):
        yield place | {"skipped": reason}
        return
    with ExitStack() as stack:
        huge: dict[str, float] = {}
        steps = {}
        for name, page in names.items():
            before = huge_cache_bytes()
            sizes = {"layers": options.decode_layers, "max_len": options.context}
            kv = stack.enter_context(open_kv(options, options.batch, Layout.slot, page, **sizes))
            fill(options, kv, [])
            huge[name] = (huge_cache_bytes() - before) / kv.stats().committed
            steps[name] = partial(_attend, options, kv)
        times = interleave(steps, options.samples, options.device)
        steps.clear()
    for name, own in times.items():
        other = ratio(times[first], own, paired=True, seed=options.seed) if name != first else None
        figures = {"mean_us": float(np.mean(own)), "first_over_it": other, "samples_us": own}
        yield {"cache": name} | place | {"huge_share": huge[name]} | figures


def _attend(options: Options, kv: VirtualKV) -> None:
    shape = options.batch, options.heads, options.head_dim
    query = torch.ones(shape, dtype=options.dtype, device=options.device)
    for keys, values in zip(kv.keys, kv.values, strict=True):
        decode_attention(query, keys, values, kv.lengths, options.head_dim**-0.5)
