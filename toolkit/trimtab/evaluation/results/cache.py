"""The sections `kv` and `engine` of result.json."""

from __future__ import annotations

from dataclasses import asdict

from trimtab.evaluation.cache_memory import PAGEMAP, CacheKind
from trimtab.evaluation.contenders import Contender
from trimtab.evaluation.results.result import Result, both


def kv_section(result: Result, baseline: Contender, candidate: Contender) -> None:
    """Fill `kv`: the KV cache of the largest timed generation, and transformers' for the same."""
    timings, caches = candidate.speed.timings, candidate.speed.caches
    index = max(range(len(timings)), key=lambda number: timings[number].live_bytes)
    largest = timings[index]
    text = largest.prompt_size + largest.size
    static, dynamic = caches[CacheKind.static], baseline.speed.caches[CacheKind.dynamic]
    measured = largest.measured_bytes
    if measured is None:
        measured = caches[CacheKind.dynamic].measured
    result.sections["kv"] = {
        "live_bytes": largest.live_bytes,
        "committed_bytes": largest.committed_bytes,
        "reserved_bytes": largest.reserved_bytes,
        "wasted_bytes": largest.committed_bytes - largest.live_bytes,
        "static_bytes": static.committed,
        "dynamic_bytes": dynamic.committed,
        "tokens": largest.prompt_tokens + largest.new_tokens,
        "live_bytes_per_byte": both(
            lambda one: one.timings[index].live_bytes / text, baseline, candidate
        ),
    }
    for name, found in (
        ("measured_bytes", measured),
        ("static_measured_bytes", static.measured),
        ("dynamic_measured_bytes", dynamic.measured),
    ):
        result.sections["kv"][name] = found
        if found is None:
            result.missing(f"kv.{name}", f"no {PAGEMAP}: the system does not say what is in memory")


def engine_section(result: Result, candidate: Contender) -> None:
    """Fill `engine`: what the engine that generated did over all generation of the job."""
    if candidate.speed.engine is None:
        reason = "transformers generated: no method of the stack has a KV cache, and none drafts"
        result.missing("engine", reason)
    else:
        counts = asdict(candidate.speed.engine)
        result.sections["engine"] = {"decode_step": candidate.speed.decode_step, **counts}
        if counts["step_costs"] is None:
            result.missing("engine.step_costs", "no method of the stack drafts")
