"""The section `speed` of result.json."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import numpy as np

from toolkit.evaluation.generation import Timing
from toolkit.evaluation.intervals import ratio
from toolkit.evaluation.measure import Side
from toolkit.evaluation.result import Result, Section, both, total

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

    def both(figure: Callable[[Side], float]) -> Section:
        return both(figure, baseline, candidate)

    def gaps(side: Side) -> list[float]:
        return [gap for timing in side.timings for gap in timing.gaps]

    def speedup(seconds: Callable[[Timing], float]) -> Section:
        # Both sides produce the same bytes, so a ratio of times is one of times per byte.
        taken = [[seconds(timing) for timing in side.timings] for side in (baseline, candidate)]
        return dict(ratio(*taken, paired=paired, seed=seed))

    def percentile(point: int) -> Section:
        return both(lambda side: 1e3 * float(np.percentile(gaps(side), point)))

    result.sections["speed"] = {
        "paired": paired,
        "ttft_ms": both(lambda side: 1e3 * median(timing.first for timing in side.timings)),
        "ms_per_token": {f"p{point}": percentile(point) for point in (50, 90, 99)},
        "prefill_tokens_per_s": both(
            lambda side: total(side, "prompt_tokens") / total(side, "first")
        ),
        "decode_tokens_per_s": both(lambda side: len(gaps(side)) / sum(gaps(side))),
        "texts_per_s": both(lambda side: len(side.timings) / total(side, "total")),
        "ms_per_byte": both(lambda side: 1e3 * total(side, "total") / total(side, "size")),
        "speedup": speedup(lambda timing: timing.total),
        "prefill_speedup": speedup(lambda timing: timing.first),
        "decode_speedup": speedup(lambda timing: sum(timing.gaps)),
        "copy_bytes_per_s": bandwidth,
        "step_bytes": both(lambda side: side.step_bytes),
        "roofline_share": both(lambda side: side.step_bytes / median(gaps(side)) / bandwidth),
    }


