"""The section `speed` of result.json."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import numpy as np

from trimtab.evaluation.contenders import Contender, SpeedSamples
from trimtab.evaluation.intervals import ratio
from trimtab.evaluation.results.result import Result, Section, both, total
from trimtab.evaluation.timing import Timing

DECODING = ("ms_per_token", "decode_tokens_per_s", "decode_speedup", "roofline_share")
ONE_STEP = "a text came in a single step: raise generation.new_tokens"


def speed_section(
    result: Result,
    baseline: Contender,
    candidate: Contender,
    *,
    paired: bool,
    bandwidth: float,
    seed: int,
) -> None:
    """Fill `speed` from the timed generations."""
    samples = baseline.speed, candidate.speed

    def figures(figure: Callable[[SpeedSamples], float]) -> Section:
        return both(figure, baseline, candidate)

    def speedup(seconds: Callable[[Timing], float]) -> Section:
        # Both contenders produce the same bytes, so a ratio of times is one of times per byte.
        taken = [[seconds(timing) for timing in one.timings] for one in samples]
        return dict(ratio(*taken, paired=paired, seed=seed))

    def percentile(point: int) -> Section:
        return figures(lambda one: 1e3 * float(np.percentile(_joined(one, "token_times"), point)))

    result.sections["speed"] = speed = {
        "paired": paired,
        "ttft_ms": figures(lambda one: 1e3 * median(timing.first for timing in one.timings)),
        "prefill_tokens_per_s": figures(
            lambda one: total(one, "prompt_tokens") / total(one, "first")
        ),
        "texts_per_s": figures(lambda one: len(one.timings) / total(one, "total")),
        "ms_per_byte": figures(lambda one: 1e3 * total(one, "total") / total(one, "size")),
        "speedup": speedup(lambda timing: timing.total),
        "prefill_speedup": speedup(lambda timing: timing.first),
        "copy_bytes_per_s": bandwidth,
        "step_bytes": figures(lambda one: one.step_bytes),
    }
    if not all(timing.gaps for one in samples for timing in one.timings):
        for name in DECODING:
            result.missing(f"speed.{name}", ONE_STEP)
        return
    speed |= {
        "ms_per_token": {f"p{point}": percentile(point) for point in (50, 90, 99)},
        "decode_tokens_per_s": figures(
            lambda one: len(_joined(one, "token_times")) / sum(_joined(one, "gaps"))
        ),
        "decode_speedup": speedup(lambda timing: sum(timing.gaps)),
        "roofline_share": figures(
            lambda one: one.step_bytes / median(_joined(one, "gaps")) / bandwidth
        ),
    }


def _joined(samples: SpeedSamples, name: str) -> list[float]:
    """Return the seconds that all timings hold under this name."""
    return [seconds for timing in samples.timings for seconds in getattr(timing, name)]
