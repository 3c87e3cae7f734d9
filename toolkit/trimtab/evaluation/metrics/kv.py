"""The KV cache of the largest timed generation, and transformers' caches for the same work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from trimtab.errors import first_line
from trimtab.evaluation.cache_memory import PAGEMAP, CacheKind, CacheMemory
from trimtab.evaluation.contenders import Contender
from trimtab.evaluation.display import Column
from trimtab.evaluation.generators.transformers import transformers_cache
from trimtab.evaluation.job import Job
from trimtab.evaluation.metrics.greedy import Greedy
from trimtab.evaluation.metrics.latency import Latency
from trimtab.evaluation.metrics.metric import Both, Metric, names
from trimtab.evaluation.result import Result
from trimtab.progress import track


class KV(Metric):
    """Bytes of keys and values: live, committed, reserved, wasted, and as the system counts."""

    needs = (Greedy, Latency)
    columns = (
        Column(
            "KV cache, kB per byte",
            "derived.kv_bytes_per_byte.candidate",
            ".1f",
            "memory that the KV cache held, per byte of text in it",
            1e-3,
        ),
    )
    fields: ClassVar[dict[str, Any]] = {
        "kv.live_bytes": int,
        "kv.committed_bytes": int,
        "kv.reserved_bytes": int,
        "kv.wasted_bytes": int,
        "kv.static_bytes": int,
        "kv.dynamic_bytes": int,
        "kv.tokens": int,
        "kv.live_bytes_per_byte": Both[float],
        "kv.measured_bytes": int,
        "kv.huge_page_bytes": int,
        "kv.static_measured_bytes": int,
        "kv.dynamic_measured_bytes": int,
    }

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.caches: dict[str, dict[CacheKind, CacheMemory]] = {}
        self._failed: dict[CacheKind, str] = {}

    def measure(self, contenders: Sequence[Contender]) -> None:
        """See `Metric.measure`.

        The largest generation of the candidate is run again, on transformers' caches. Of the
        candidate both kinds are measured, but for the dynamic one where it has a cache of its own;
        of the baseline the dynamic one alone.
        """
        prompts = self.job.metric(Greedy).prompts
        timings, index = self._largest()
        for one in contenders:
            if one.name == "baseline":
                kinds = [CacheKind.dynamic]
            else:
                kinds = [CacheKind.static] if one.stack.needs_engine else [*CacheKind]
            self.caches[one.name] = {}
            for kind in track(kinds, f"Memory of transformers' caches: {names([one])}", len(kinds)):
                prompt, timing = prompts[index % len(prompts)], timings[one.name][index]
                try:
                    self.caches[one.name][kind] = transformers_cache(
                        one.model, one.tokenizer, prompt, timing.new_tokens, kind
                    )
                except Exception as error:  # not every attention takes every cache
                    reason = first_line(error)
                    self._failed[kind] = f"transformers' {kind} cache fails on it: {reason}"

    def summarise(self, result: Result, baseline: Contender, candidate: Contender) -> None:
        """See `Metric.summarise`."""
        timings, index = self._largest()
        largest = timings["candidate"][index]
        text = largest.prompt_size + largest.size
        static = self.caches["candidate"].get(CacheKind.static)
        dynamic = self.caches["baseline"].get(CacheKind.dynamic)
        measured = largest.measured_bytes
        if measured is None and (own := self.caches["candidate"].get(CacheKind.dynamic)):
            measured = own.measured
        figures = {
            "live_bytes": largest.live_bytes,
            "committed_bytes": largest.committed_bytes,
            "reserved_bytes": largest.reserved_bytes,
            "wasted_bytes": largest.committed_bytes - largest.live_bytes,
            "static_bytes": static and static.committed,
            "dynamic_bytes": dynamic and dynamic.committed,
            "tokens": largest.prompt_tokens + largest.new_tokens,
            "live_bytes_per_byte": {
                name: own[index].live_bytes / text for name, own in timings.items()
            },
            "measured_bytes": measured,
            "huge_page_bytes": largest.huge_page_bytes,
            "static_measured_bytes": static and static.measured,
            "dynamic_measured_bytes": dynamic and dynamic.measured,
        }
        for name, value in figures.items():
            if name == "huge_page_bytes" and value is None:
                result.missing("kv.huge_page_bytes", "no virtual cache")
            elif value is None:
                kind = CacheKind.static if name.startswith("static") else CacheKind.dynamic
                unknown = f"no {PAGEMAP}: the system does not say what is in memory"
                result.missing(f"kv.{name}", self._failed.get(kind, unknown))
            else:
                result.put(f"kv.{name}", value)

    def _largest(self) -> tuple[dict[str, list[Any]], int]:
        """Return the timings, and the number of the candidate's that holds most."""
        timings = self.job.metric(Latency).timings
        sizes = [timing.live_bytes for timing in timings["candidate"]]
        return timings, sizes.index(max(sizes))
