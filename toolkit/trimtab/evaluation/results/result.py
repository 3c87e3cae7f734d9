"""The content of result.json: every figure under the name docs/results.md documents.

Nothing is filled in that was not measured: such a field is None, and `reasons` says why.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from trimtab.evaluation.contenders import Contender, SpeedSamples

Section = dict[str, Any]


class Result:
    """Sections of result.json, and the reasons for what is missing in them."""

    def __init__(self) -> None:
        self.sections: Section = {}
        self.reasons: dict[str, str] = {}

    def missing(self, name: str, reason: str) -> None:
        """Note that the dotted field `name` was not measured."""
        *sections, field = name.split(".")
        place = self.sections
        for section in sections:
            place = place.setdefault(section, {})
        place[field] = None
        self.reasons[name] = reason

    def add(self, sections: Mapping[str, Section]) -> None:
        """Take in what methods measured, see `trimtab.capabilities.Measures`."""
        for name, section in sections.items():
            fields = dict(section)
            reasons = fields.pop("reasons", {})
            self.sections[name] = fields
            for field, reason in reasons.items():
                self.missing(f"{name}.{field}", reason)


def both(
    figure: Callable[[SpeedSamples], float], baseline: Contender, candidate: Contender
) -> Section:
    """Return a figure of both contenders' speed samples."""
    return {"baseline": figure(baseline.speed), "candidate": figure(candidate.speed)}


def total(samples: SpeedSamples, name: str) -> float:
    """Return the sum of a field of all timings."""
    return sum(getattr(timing, name) for timing in samples.timings)
