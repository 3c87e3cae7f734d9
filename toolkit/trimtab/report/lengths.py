"""Which of the settings that were typed only shorten a measurement."""

from __future__ import annotations

import re
from collections.abc import Sequence

from trimtab.config import MeasureConfig

# How much is measured, metrics that are left out among it; and how often alone.
EXTENT = ("quality.", "speed.", "serving.", "generation.", "energy.", "~metrics.", "experiment=")
ROUNDS = ("speed.", "serving.repeats=", "energy.")
LARGER_IS_SHORTER = ("speed.precision",)
DEMO = "experiment=demo"
LIMITS = ("quality.task_limit",)  # null, the default, takes all


def shortening(overrides: Sequence[str], among: tuple[str, ...]) -> list[str]:
    """Return the overrides that begin so and measure less than the defaults do."""
    return [one for one in overrides if one.startswith(among) and _shortens(one)]


def _shortens(override: str) -> bool:
    if override.startswith("experiment="):
        return override == DEMO
    key, _, value = override.partition("=")
    group, _, name = key.partition(".")
    if key in LIMITS or group.startswith("~"):
        return value != "null"
    default = getattr(getattr(MeasureConfig(), group), name, None)
    typed, usual = _size(value), _size(str(default))
    if typed is None or usual is None:
        return False
    return typed > usual if key in LARGER_IS_SHORTER else typed < usual


def _size(value: str) -> float | None:
    """Return a number, or the sum of a list of them; None of anything else."""
    try:
        return sum(map(float, filter(None, re.split(r"[\s,]+", value.strip("[]")))))
    except ValueError:
        return None
