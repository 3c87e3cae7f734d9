"""What a stack changes, on a scale on which the changes of independent methods add up.

Times and memory multiply, so that their logarithms add up; bits are logarithms already.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp, log
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

from trimtab.report.job import Job

CONFIDENCE = 0.95
Terms = Sequence[tuple[int, Job]]  # jobs, each counted once or taken off once
Bounds = tuple[float, float]


@dataclass(frozen=True)
class Metric:
    """A figure that methods change.

    Attributes
    ----------
    name : str
        With its unit.
    key : str
        Its name in comprehensive_benchmark_results.json.
    field : str
        Dotted name, in a job, of what changes are computed from.
    form : str
        Format specification of a value.
    multiplies : bool
        Whether changes are logarithms of factors; else they are differences.
    start : callable
        The unmodified model's value, in a job.
    change : callable
        What the stack of a job changes it by; None where that was not measured.
    bounds : callable
        95 % interval of one job's change, as the job itself found it.
    half_width : callable
        Half of the 95 % interval of a sum of changes, by the jobs' samples; None without samples.
    """

    name: str
    key: str
    field: str
    form: str
    multiplies: bool
    start: Callable[[Job], float]
    change: Callable[[Job], float | None]
    bounds: Callable[[Job], Bounds | None]
    half_width: Callable[[Terms], float | None]

    def interval(self, terms: Terms) -> Bounds | None:
        """Return the 95 % interval of a sum of changes; None where no samples say."""
        if len(terms) == 1:
            return self.bounds(terms[0][1])
        middle = sum(sign * (self.change(job) or 0.0) for sign, job in terms)
        half = self.half_width(terms)
        return None if half is None else (middle - half, middle + half)

    def value(self, start: float, change: float) -> float:
        """Return what `start` becomes."""
        return start * exp(change) if self.multiplies else start + change

    def told(self, change: float) -> str:
        """Return a change as people read it: a factor, or a difference."""
        return f"× {exp(change):.3f}" if self.multiplies else f"{change:+{self.form}}"


def _time_change(job: Job) -> float | None:
    ratio = job.get("speed.speedup")
    return None if ratio is None else -log(ratio["estimate"])


def _time_bounds(job: Job) -> Bounds | None:
    ratio = job.get("speed.speedup")
    return None if ratio is None else (-log(ratio["high"]), -log(ratio["low"]))


def _memory_change(job: Job) -> float | None:
    held = job.get("derived.kv_bytes_per_byte")
    return None if held is None else log(held["candidate"] / held["baseline"])


def _bits_change(job: Job) -> float | None:
    found = job.get("quality.bits_per_byte.difference")
    return None if found is None else float(found["estimate"])


def _bits_bounds(job: Job) -> Bounds | None:
    found = job.get("quality.bits_per_byte.difference")
    return None if found is None else (float(found["low"]), float(found["high"]))


def log_ratios(job: Job) -> NDArray[np.float64] | None:
    """Return log(candidate / baseline) of the total times, one for each prompt and repeat.

    None where the job did not time the two in turn, or its samples are not in pairs.
    """
    rows: list[dict[str, Any]] = job.get("samples.timings") or []
    taken: list[list[tuple[Any, float]]] = [
        [(row["prompt"], row["total"]) for row in rows if row["model"] == name]
        for name in ("baseline", "candidate")
    ]
    first, second = taken
    if not job.get("speed.paired") or [one for one, _ in first] != [one for one, _ in second]:
        return None
    pairs = zip(first, second, strict=True)
    return np.array([log(candidate / baseline) for (_, baseline), (_, candidate) in pairs])


def _time_half_width(terms: Terms) -> float | None:
    """Add up the variances of jobs, which are independent of each other (Welch, Satterthwaite)."""
    samples = [log_ratios(job) for _, job in terms]
    if any(one is None or len(one) < 2 for one in samples):
        return None
    counts = [len(one) for one in samples if one is not None]
    parts = [float(np.var(one, ddof=1)) / len(one) for one in samples if one is not None]
    total = sum(parts)
    if total == 0:
        return 0.0
    spread = sum(part**2 / (count - 1) for part, count in zip(parts, counts, strict=True))
    return _quantile(total**2 / spread) * total**0.5


def _bits_half_width(terms: Terms) -> float | None:
    """Sum the changes window by window: the jobs must have scored the same ones."""
    differences: Any = 0.0
    known: list[tuple[str, int]] | None = None
    for sign, job in terms:
        windows, bits = _changes(job)
        if len(windows) < 2 or (known or windows) != windows:
            return None
        known = windows
        differences = differences + sign * bits
    sizes = np.array([size for _, size in known or ()], dtype=np.float64)
    residuals = differences - sizes * differences.sum() / sizes.sum()
    error = np.sqrt(len(sizes) * np.var(residuals, ddof=1)) / sizes.sum()
    return _quantile(len(sizes) - 1) * float(error)


def _changes(job: Job) -> tuple[list[tuple[str, int]], Any]:
    """Return a job's windows, and by how many bits each changed; none where they do not fit.

    Seeds that were averaged have scored the same windows, and count as one.
    """
    rows: list[dict[str, Any]] = job.get("samples.windows") or []
    first, second = ([row for row in rows if row["model"] == name]
                     for name in ("baseline", "candidate"))  # fmt: skip
    windows = [(row["document"], row["bytes"]) for row in first]
    if len(second) != len(first):
        return [], None
    bits = np.array([two["bits"] - one["bits"] for one, two in zip(first, second, strict=True)])
    seeds = len(job.seeds) or 1
    own = windows[: len(windows) // seeds]
    if own * seeds == windows:
        return own, bits.reshape(seeds, -1).mean(0)
    return windows, bits


def _quantile(freedom: float) -> float:
    return float(t.ppf((1 + CONFIDENCE) / 2, freedom))


METRICS = (
    Metric(
        "time, ms per byte of text", "ms_per_byte", "speed.speedup", ".2f", True,
        lambda job: job.get("speed.ms_per_byte.baseline.estimate"), _time_change, _time_bounds,
        _time_half_width,
    ),
    Metric(
        "KV cache, bytes per byte of text", "kv_bytes_per_byte", "derived.kv_bytes_per_byte",
        ",.0f", True,
        lambda job: job.get("derived.kv_bytes_per_byte.baseline"), _memory_change,
        lambda _: None, lambda _: None,
    ),
    Metric(
        "bits per byte of text", "bits_per_byte", "quality.bits_per_byte", ".4f", False,
        lambda job: job.get("quality.bits_per_byte.baseline"), _bits_change, _bits_bounds,
        _bits_half_width,
    ),
)  # fmt: skip
