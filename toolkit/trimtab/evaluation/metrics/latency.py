"""How long one text at a time takes: scenario *latency*, sections `speed` and `engine`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any, ClassVar

import numpy as np

from trimtab.evaluation.contenders import Contender
from trimtab.evaluation.intervals import Estimate, ratio
from trimtab.evaluation.job import Job
from trimtab.evaluation.memory import copy_bandwidth, step_bytes
from trimtab.evaluation.metrics.greedy import Greedy
from trimtab.evaluation.metrics.metric import Both, Metric, Rows, in_turn, names
from trimtab.evaluation.result import Result
from trimtab.evaluation.timing import Timing
from trimtab.progress import track

ONE_STEP = "a text came in a single step: raise generation.new_tokens"
DECODING: dict[str, Any] = {
    "speed.ms_per_token": dict[str, Both[float]],
    "speed.decode_tokens_per_s": Both[float],
    "speed.decode_speedup": Estimate,
    "speed.roofline_share": Both[float],
}


class Latency(Metric):
    """Times of generation, one text at a time; both models generate the same bytes.

    Attributes
    ----------
    timings : dict of str to list of Timing
        By contender: repeats in order, prompts within.
    """

    generates = True
    needs = (Greedy,)  # which counts what a step reads
    fields: ClassVar[dict[str, Any]] = {
        "speed.paired": bool,
        "speed.ttft_ms": Both[float],
        "speed.prefill_tokens_per_s": Both[float],
        "speed.texts_per_s": Both[float],
        "speed.ms_per_byte": Both[float],
        "speed.speedup": Estimate,
        "speed.prefill_speedup": Estimate,
        "speed.copy_bytes_per_s": float,
        "speed.step_bytes": Both[int],
        **DECODING,
        "engine": dict[str, Any],
        "samples.timings": Rows,
    }

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._prompts = job.metric(Greedy).prompts
        self.timings: dict[str, list[Timing]] = {"baseline": [], "candidate": []}
        self._step_bytes: dict[str, int] = {}
        self._engine: dict[str, Any] | None = None
        self._bandwidth = 0.0

    def measure(self, contenders: Sequence[Contender]) -> None:
        """See `Metric.measure`."""
        speed = self.job.settings.speed
        rounds = range(speed.warmup + speed.repeats)
        turns = list(itertools.product(rounds, enumerate(self._prompts)))
        for number, (index, prompt) in track(turns, f"Timing: {names(contenders)}", len(turns)):
            for one in in_turn(number + index, contenders):
                timing = one.generator.teacher_forced(prompt)
                if number >= speed.warmup:
                    self.timings[one.name].append(timing)
        for one in contenders:
            read = step_bytes(one.model) + one.stack.extra_step_bytes()
            if one.engine is not None:
                read -= one.engine.unread_head_bytes
                counts = asdict(one.engine.stats)
                self._engine = {"decode_step": one.engine.decode_step, **counts}
            self._step_bytes[one.name] = read
        self._bandwidth = copy_bandwidth(contenders[0].model.device)

    def summarise(self, result: Result, baseline: Contender, candidate: Contender) -> None:
        """See `Metric.summarise`."""
        first, second = self.timings["baseline"], self.timings["candidate"]

        def figure(value: Callable[[list[Timing]], float]) -> Both[float]:
            return {"baseline": value(first), "candidate": value(second)}

        def speedup(seconds: Callable[[Timing], float]) -> Estimate:
            # Both produce the same bytes, so a ratio of times is one of times per byte.
            taken = [[seconds(timing) for timing in timings] for timings in (first, second)]
            return ratio(*taken, paired=self.job.paired, seed=self.job.settings.seed)

        figures = {
            "paired": self.job.paired,
            "ttft_ms": figure(lambda own: 1e3 * median(timing.first for timing in own)),
            "prefill_tokens_per_s": figure(
                lambda own: total(own, "prompt_tokens") / total(own, "first")
            ),
            "texts_per_s": figure(lambda own: len(own) / total(own, "total")),
            "ms_per_byte": figure(lambda own: 1e3 * total(own, "total") / total(own, "size")),
            "speedup": speedup(lambda timing: timing.total),
            "prefill_speedup": speedup(lambda timing: timing.first),
            "copy_bytes_per_s": self._bandwidth,
            "step_bytes": self._step_bytes,
        }
        for name, value in figures.items():
            result.put(f"speed.{name}", value)
        if all(timing.gaps for timing in first + second):
            self._decoding(result, figure, speedup)
        else:
            for name in DECODING:
                result.missing(name, ONE_STEP)
        self._summarise_engine(result)
        rows = [
            {"model": name, "prompt": index % len(self._prompts), **asdict(timing)}
            for name, timings in self.timings.items()
            for index, timing in enumerate(timings)
        ]
        result.put("samples.timings", rows)

    def _decoding(
        self,
        result: Result,
        figure: Callable[[Callable[[list[Timing]], float]], Both[float]],
        speedup: Callable[[Callable[[Timing], float]], Estimate],
    ) -> None:
        def percentile(point: int) -> Both[float]:
            return figure(lambda own: 1e3 * float(np.percentile(joined(own, "token_times"), point)))

        def rate(own: list[Timing]) -> float:
            return len(joined(own, "token_times")) / sum(joined(own, "gaps"))

        steps = figure(lambda own: median(joined(own, "gaps")))
        shares = {
            name: self._step_bytes[name] / seconds / self._bandwidth
            for name, seconds in (
                ("baseline", steps["baseline"]),
                ("candidate", steps["candidate"]),
            )
        }
        result.put("speed.ms_per_token", {f"p{point}": percentile(point) for point in (50, 90, 99)})
        result.put("speed.decode_tokens_per_s", figure(rate))
        result.put("speed.decode_speedup", speedup(lambda timing: sum(timing.gaps)))
        result.put("speed.roofline_share", shares)

    def _summarise_engine(self, result: Result) -> None:
        result.put("engine", self._engine)
        if self._engine is None:
            reason = "no method of the stack has a KV cache, and none drafts"
            result.missing("engine", f"transformers generated: {reason}")
        elif self._engine["step_costs"] is None:
            result.missing("engine.step_costs", "no method of the stack drafts")


def total(timings: Sequence[Timing], name: str) -> float:
    """Return the sum of a field of all timings."""
    return float(sum(getattr(timing, name) for timing in timings))


def joined(timings: Sequence[Timing], name: str) -> list[float]:
    """Return the seconds that all timings hold under this name."""
    return [seconds for timing in timings for seconds in getattr(timing, name)]
