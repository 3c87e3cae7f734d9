"""How long one text at a time takes: scenario *latency*, sections `speed` and `engine`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from operator import attrgetter
from statistics import median
from typing import Any, ClassVar, get_type_hints

import numpy as np

from trimtab.evaluation.contenders import Contender
from trimtab.evaluation.display import Chart, Column, Series
from trimtab.evaluation.intervals import Estimate, geometric_mean, half_width, typical
from trimtab.evaluation.job import Job
from trimtab.evaluation.load import Load
from trimtab.evaluation.memory import step_bytes
from trimtab.evaluation.metrics.greedy import Greedy
from trimtab.evaluation.metrics.metric import Both, Metric, Rows
from trimtab.evaluation.reach import held_back, unseen
from trimtab.evaluation.result import Result
from trimtab.evaluation.rounds import Rounds, Timed
from trimtab.evaluation.speed import Verdict, outliers, verdict
from trimtab.evaluation.timing import Timing
from trimtab.evaluation.work import TextTime, text_time
from trimtab.generation.stats import EngineStats
from trimtab.vattention.settings import Layout

UNPAIRED = (
    "paired=false: the models were timed one after the other, and what changed on the machine "
    "in between is part of the speedup"
)
OVER_THE_TOP = (
    "speed.roofline_share is over 1: weights stay in the processor's caches, or a large sum does "
    "not read as fast as the machine can"
)
ONE_STEP = "a text came in a single step: raise generation.new_tokens"
UNTOLD = "no decode step in C++ ran, which alone tells what its time goes to"
DECODING: dict[str, Any] = {
    "speed.ms_per_token": dict[str, Both[Estimate]],
    "speed.decode_tokens_per_s": Both[Estimate],
    "speed.decode_speedup": Estimate,
    "speed.roofline_share": Both[Estimate],
}
ENGINE: dict[str, Any] = {
    "decode_step": str,
    "head_copy_bytes": int,
    "kv_layout": Layout,
    "ms_per_text": TextTime,
    **get_type_hints(EngineStats),
}

SPEEDUP = Series(
    "speedup per byte of text", "speed.speedup", ".2f", origin=1,
    finding="Fastest: {best}, {value} times the unmodified model",
)  # fmt: skip
DECODING_RATE = Series(
    "decoding, tokens/s", "speed.decode_tokens_per_s.candidate", ".1f",
    beside="speed.decode_tokens_per_s.baseline",
    finding="Most tokens per second while decoding: {best}, {value}",
)  # fmt: skip
TEXT_RATE = Series(
    "texts/s", "speed.texts_per_s.candidate", ".2f", beside="speed.texts_per_s.baseline",
    finding="Most texts per second, one at a time: {best}, {value}",
)  # fmt: skip
SPEEDUPS = Chart(
    "all_methods_speedup_comparison.png",
    "No stack is measurably faster than the unmodified model",
    (
        SPEEDUP,
        Series("speedup until the first token", "speed.prefill_speedup", ".2f", origin=1),
        Series("speedup of decoding after it", "speed.decode_speedup", ".2f", origin=1),
    ),
)
THROUGHPUT = Chart(
    "all_methods_throughput_comparison.png",
    "No stack is measurably faster than the unmodified model",
    (
        DECODING_RATE,
        Series("reading the prompt, tokens/s", "speed.prefill_tokens_per_s.candidate", ",.0f",
               beside="speed.prefill_tokens_per_s.baseline"),
        TEXT_RATE,
    ),
)  # fmt: skip


class Latency(Metric):
    """Times of generation, one text at a time; both models generate the same bytes.

    Attributes
    ----------
    timings : dict of str to list of Timing
        By contender: rounds in order, prompts within.
    """

    generates = True
    times = True
    needs = (Greedy,)  # which counts what a step reads
    columns = (
        Column("first token, ms", "speed.ttft_ms.candidate", ".1f", "time to it"),
        Column("decode tokens/s", "speed.decode_tokens_per_s.candidate", ".1f"),
        Column("ms per byte", "speed.ms_per_byte.candidate", ".2f", "time over the text made"),
        Column(
            "speedup",
            "speed.speedup",
            ".3f",
            "time per byte of the unmodified model over the stack's, timed in turn",
        ),
        Column(
            "control",
            "speed.control",
            ".3f",
            "the unmodified model against itself in the same rounds: the noise of the measurement",
        ),
    )
    charts = (SPEEDUPS, THROUGHPUT)
    fields: ClassVar[dict[str, Any]] = {
        "speed.paired": bool,
        "speed.ttft_ms": Both[Estimate],
        "speed.prefill_tokens_per_s": Both[Estimate],
        "speed.texts_per_s": Both[Estimate],
        "speed.ms_per_byte": Both[Estimate],
        "speed.speedup": Estimate,
        "speed.control": Estimate,
        "speed.verdict": Verdict,
        "speed.rounds": Timed,
        "speed.outliers": Both[int],
        "speed.prefill_speedup": Estimate,
        "speed.prefill_control": Estimate,
        "speed.read_bytes_per_s": float,
        "speed.step_bytes": Both[int],
        **DECODING,
        **{f"engine.{name}": kind for name, kind in ENGINE.items()},
        "environment.load": Load,
        "samples.timings": Rows,
        "samples.read_bytes_per_s": list[float],
    }

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._prompts = job.metric(Greedy).prompts
        self._rounds = Rounds(self._prompts, job.settings.speed, job.settings.seed)
        self.timings = {name: self._rounds.timings[name] for name in ("baseline", "candidate")}
        self._step_bytes: dict[str, int] = {}
        self._engine: dict[str, Any] | None = None

    def measure(self, contenders: Sequence[Contender]) -> None:
        """See `Metric.measure`."""
        self._rounds.run(contenders)
        for one in contenders:
            read = step_bytes(one.model) + one.stack.extra_step_bytes()
            if one.engine is not None:
                read -= one.engine.unread_head_bytes
                self._engine = {
                    "decode_step": one.engine.decode_step,
                    "head_copy_bytes": one.engine.head_copy_bytes,
                    "kv_layout": one.engine.kv.geometry.layout,
                    **asdict(one.engine.stats),
                }
            self._step_bytes[one.name] = read

    def summarise(self, result: Result, baseline: Contender, candidate: Contender) -> None:
        """See `Metric.summarise`."""
        rounds = self._rounds
        first, whole = attrgetter("first"), attrgetter("total")
        speedup, control = rounds.speedup(whole), rounds.speedup(whole, of="control")
        figures = {
            "paired": self.job.paired,
            "ttft_ms": self._typical(lambda one: 1e3 * one.first),
            "prefill_tokens_per_s": self._typical(lambda one: one.prompt_tokens / one.first),
            "texts_per_s": self._typical(lambda one: 1 / one.total),
            "ms_per_byte": self._typical(lambda one: 1e3 * one.total / one.size),
            "speedup": speedup,
            "control": control,
            "verdict": verdict(speedup, control),
            "rounds": {
                "done": rounds.done,
                "stopped_by": rounds.stopped_by,
                "half_width": half_width(speedup),
            },
            "outliers": self._figure(lambda own: outliers(own, len(self._prompts))),
            "prefill_speedup": rounds.speedup(first),
            "prefill_control": rounds.speedup(first, of="control"),
            "read_bytes_per_s": median(rounds.read),
            "step_bytes": self._step_bytes,
        }
        for name, value in figures.items():
            result.put(f"speed.{name}", value)
        if all(timing.gaps for own in self.timings.values() for timing in own):
            self._decoding(result)
        else:
            for name in DECODING:
                result.missing(name, ONE_STEP)
        self._summarise_engine(result)
        self._summarise_machine(result)
        texts = [(one.prompt_tokens, one.new_tokens) for one in self.timings["candidate"]]
        stock = self.timings["baseline"]
        decoding = sum(joined(stock, "gaps")) / total(stock, "total")
        for text in unseen("latency", "generation", candidate, texts, decoding):
            result.warn(text)
        copied = (self._engine or {}).get("head_copy_bytes", 0)
        for text in held_back(candidate, self._step_bytes, copied):
            result.warn(text)
        rows = [
            {"model": name, "prompt": index % len(self._prompts), **timing.row()}
            for name, timings in rounds.timings.items()
            for index, timing in enumerate(timings)
        ]
        result.put("samples.timings", rows)
        result.put("samples.read_bytes_per_s", rounds.read)

    def _figure(self, value: Callable[[list[Timing]], Any]) -> Both[Any]:
        return {
            "baseline": value(self.timings["baseline"]),
            "candidate": value(self.timings["candidate"]),
        }

    def _typical(self, value: Callable[[Timing], float]) -> Both[Estimate]:
        """Return what a figure of a generation typically is, of both contenders."""
        return self._figure(lambda own: typical([value(one) for one in own]))

    def _percentile(self, point: int) -> Both[Estimate]:
        """Return a percentile of milliseconds a token within a round, by its mean over rounds."""
        prompts = len(self._prompts)

        def over_rounds(own: list[Timing]) -> Estimate:
            rounds = [own[first : first + prompts] for first in range(0, len(own), prompts)]
            times = [joined(one, "token_times") for one in rounds]
            return geometric_mean([1e3 * float(np.percentile(one, point)) for one in times])

        return self._figure(over_rounds)

    def _decoding(self, result: Result) -> None:
        result.put("speed.ms_per_token", {f"p{one}": self._percentile(one) for one in (50, 90, 99)})
        later = self._typical(lambda one: len(one.token_times) / sum(one.gaps))
        result.put("speed.decode_tokens_per_s", later)
        result.put("speed.decode_speedup", self._rounds.speedup(lambda one: sum(one.gaps)))
        read = median(self._rounds.read)
        shares = {
            name: typical([self._step_bytes[name] / median(one.gaps) / read for one in own])
            for name, own in self.timings.items()
        }
        result.put("speed.roofline_share", shares)
        if max(one["estimate"] for one in shares.values()) > 1:
            result.warn(OVER_THE_TOP)

    def _summarise_engine(self, result: Result) -> None:
        if self._engine is None:
            reason = "no method of the stack has a KV cache, and none drafts"
            result.missing("engine", f"transformers generated: {reason}")
            return
        result.put("engine", self._engine)
        if self._engine["step_costs"] is None:
            for name in ("step_costs", "step_costs_measured", "step_costs_seconds"):
                result.missing(f"engine.{name}", "no method of the stack drafts")
        own = self.timings["candidate"]
        if not any(timing.gaps for timing in own):
            result.missing("engine.ms_per_text", ONE_STEP)
        elif found := text_time(own):
            result.put("engine.ms_per_text", found)
        else:
            step = self._engine["decode_step"]
            result.missing("engine.ms_per_text", f"{UNTOLD}: {step}")

    def _summarise_machine(self, result: Result) -> None:
        load = self._rounds.load.load
        result.put("environment.load", load)
        if load["busy"]:
            result.warn(f"the machine was busy: {load['reason']}")
        if not self.job.paired:
            result.warn(UNPAIRED)


def total(timings: Sequence[Timing], name: str) -> float:
    """Return the sum of a field of all timings."""
    return float(sum(getattr(timing, name) for timing in timings))


def joined(timings: Sequence[Timing], name: str) -> list[float]:
    """Return the seconds that all timings hold under this name."""
    return [seconds for timing in timings for seconds in getattr(timing, name)]
