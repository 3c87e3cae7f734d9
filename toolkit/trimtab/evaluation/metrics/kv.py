"""The KV cache of the largest timed generation, and transformers' caches for the same work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from trimtab.evaluation.cache_memory import PAGEMAP, CacheKind, CacheMemory
from trimtab.evaluation.contenders import Contender
from trimtab.evaluation.generators.transformers import transformers_cache
from trimtab.evaluation.job import Job
from trimtab.evaluation.metrics.greedy import Greedy
from trimtab.evaluation.metrics.latency import Latency
from trimtab.evaluation.metrics.metric import Both, Metric
from trimtab.evaluation.result import Result
from trimtab.progress import track


class KV(Metric):
    """Bytes of keys and values: live, committed, reserved, wasted, and as the system counts."""

    needs = (Greedy, Latency)
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
        "kv.static_measured_bytes": int,
        "kv.dynamic_measured_bytes": int,
    }

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.caches: dict[str, dict[CacheKind, CacheMemory]] = {}

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
            self.caches[one.name] = {
                kind: transformers_cache(
                    one.model,
                    one.tokenizer,
                    prompts[index % len(prompts)],
                    timings[one.name][index].new_tokens,
                    kind,
                )
                for kind in track(kinds, f"Transformers' caches: {one.name}", len(kinds))
            }

    def summarise(self, result: Result, baseline: Contender, candidate: Contender) -> None:
        """See `Metric.summarise`."""
        timings, index = self._largest()
        largest = timings["candidate"][index]
        text = largest.prompt_size + largest.size
        static = self.caches["candidate"][CacheKind.static]
        dynamic = self.caches["baseline"][CacheKind.dynamic]
        measured = largest.measured_bytes
        if measured is None:
            measured = self.caches["candidate"][CacheKind.dynamic].measured
        figures = {
            "live_bytes": largest.live_bytes,
            "committed_bytes": largest.committed_bytes,
            "reserved_bytes": largest.reserved_bytes,
            "wasted_bytes": largest.committed_bytes - largest.live_bytes,
            "static_bytes": static.committed,
            "dynamic_bytes": dynamic.committed,
            "tokens": largest.prompt_tokens + largest.new_tokens,
            "live_bytes_per_byte": {
                name: own[index].live_bytes / text for name, own in timings.items()
            },
            "measured_bytes": measured,
            "static_measured_bytes": static.measured,
            "dynamic_measured_bytes": dynamic.measured,
        }
        for name, value in figures.items():
            if value is None:
                reason = f"no {PAGEMAP}: the system does not say what is in memory"
                result.missing(f"kv.{name}", reason)
            else:
                result.put(f"kv.{name}", value)

    def _largest(self) -> tuple[dict[str, list[Any]], int]:
        """Return the timings, and the number of the candidate's that holds most."""
        timings = self.job.metric(Latency).timings
        sizes = [timing.live_bytes for timing in timings["candidate"]]
        return timings, sizes.index(max(sizes))
