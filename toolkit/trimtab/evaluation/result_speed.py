"""The section `speed` of result.json."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import numpy as np

from trimtab.evaluation.intervals import ratio
from trimtab.evaluation.result import Result, Section, both, total
from trimtab.evaluation.sides import Side
from trimtab.evaluation.timing import Timing

DECODING = ("ms_per_token", "decode_tokens_per_s", "decode_speedup", "roofline_share")
ONE_STEP = "a text came in a single step: raise generation.new_tokens"


def speed_section(
    result: Result,
    baseline: Side,
    candidate: Side,
    *,
    paired: bool,
    bandwidth: float,
    seed: int,
) -> None:
    """Fill `speed` from the timed generations."""
    sides = baseline, candidate

    def figures(figure: Callable[[Side], float]) -> Section:
        return both(figure, *sides)

    def speedup(seconds: Callable[[Timing], float]) -> Section:
        # Both sides produce the same bytes, so a ratio of times is one of times per byte.
        taken = [[seconds(timing) for timing in side.timings] for side in sides]
        return dict(ratio(*taken, paired=paired, seed=seed))

    def percentile(point: int) -> Section:
        return figures(lambda side: 1e3 * float(np.percentile(_joined(side, "token_times"), point)))

    result.sections["speed"] = speed = {
        "paired": paired,
        "ttft_ms": figures(lambda side: 1e3 * median(timing.first for timing in side.timings)),
        "prefill_tokens_per_s": figures(
            lambda side: total(side, "prompt_tokens") / total(side, "first")
        ),
        "texts_per_s": figures(lambda side: len(side.timings) / total(side, "total")),
        "ms_per_byte": figures(lambda side: 1e3 * total(side, "total") / total(side, "size")),
        "speedup": speedup(lambda timing: timing.total),
        "prefill_speedup": speedup(lambda timing: timing.first),
        "copy_bytes_per_s": bandwidth,
        "step_bytes": figures(lambda side: side.step_bytes),
    }
    if not all(timing.gaps for side in sides for timing in side.timings):
        for name in DECODING:
            result.missing(f"speed.{name}", ONE_STEP)
        return
    speed |= {
        "ms_per_token": {f"p{point}": percentile(point) for point in (50, 90, 99)},
        "decode_tokens_per_s": figures(
            lambda side: len(_joined(side, "token_times")) / sum(_joined(side, "gaps"))
        ),
        "decode_speedup": speedup(lambda timing: sum(timing.gaps)),
        "roofline_share": figures(
            lambda side: side.step_bytes / median(_joined(side, "gaps")) / bandwidth
        ),
    }


def _joined(side: Side, name: str) -> list[float]:
    """Return the seconds that all timings of a side hold under this name."""
    return [seconds for timing in side.timings for seconds in getattr(timing, name)]
