"""The content of result.json: every figure under the name docs/results.md documents.

Nothing is filled in that was not measured: such a field is None, and `reasons` says why.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Section = dict[str, Any]
RANDOM_WEIGHTS = "the weights are random"  # how a reason begins, where that is why


class Result:
    """Sections of result.json, and the reasons for what is missing in them."""

    def __init__(self) -> None:
        self.sections: Section = {}
        self.reasons: dict[str, str] = {}
        self.warnings: list[str] = []

    def put(self, name: str, value: Any) -> None:
        """Write the dotted field `name`."""
        *sections, field = name.split(".")
        place = self.sections
        for section in sections:
            place = place.setdefault(section, {})
        place[field] = value

    def missing(self, name: str, reason: str) -> None:
        """Note that the dotted field `name` was not measured."""
        self.put(name, None)
        self.reasons[name] = reason

    def warn(self, text: str) -> None:
        """Note what a reader of the figures has to know."""
        self.warnings.append(text)

    def add(self, sections: Mapping[str, Section]) -> None:
        """Take in what methods measured, see `trimtab.capabilities.Measures`."""
        for name, section in sections.items():
            fields = dict(section)
            reasons = fields.pop("reasons", {})
            self.put(name, fields)
            for field, reason in reasons.items():
                self.missing(f"{name}.{field}", reason)

    @property
    def content(self) -> Section:
        """What result.json holds: JSON values only."""
        return {**self.sections, "warnings": self.warnings, "reasons": self.reasons}
