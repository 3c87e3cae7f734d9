"""Where the time of answering requests goes, by PyTorch's profiler."""

from __future__ import annotations

import time
from collections.abc import Sequence

from torch.profiler import ProfilerActivity, profile

from serving_parts.servers import Contender
from trimtab.evaluation.generators.server import Request

KINDS = {
    "linear layers": ("aten::linear", "trimtab::sparse_linear"),
    "transforms": ("aten::matmul", "trimtab::int8_linear"),
    "selection": ("trimtab::keep_above", "trimtab::keep_topk"),
    "attention": ("aten::scaled_dot_product_attention", "trimtab::decode_attention"),
}
OTHERS, OUTSIDE = "other operators", "outside operators"


def work_ms(contender: Contender, given: Sequence[Request], times: int) -> dict[str, float]:
    """Return milliseconds by kind of work, in the mean of some turns under the profiler.

    They add up to the time of a turn. An operator counts as what the model calls: a product within
    a linear layer is part of the layer.
    """
    found = dict.fromkeys((*KINDS, OTHERS, OUTSIDE), 0.0)
    kind_of = {name: kind for kind, names in KINDS.items() for name in names}
    for _ in range(times):
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            started = time.perf_counter()
            contender.server.serve(given)
            seconds = time.perf_counter() - started
        inside = 0.0
        for event in profiler.events():
            if event.cpu_parent is None:
                milliseconds = event.cpu_time_total / 1e3
                found[kind_of.get(event.name, OTHERS)] += milliseconds / times
                inside += milliseconds
        found[OUTSIDE] += (1e3 * seconds - inside) / times
    return found
