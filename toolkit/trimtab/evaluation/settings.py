"""What a result was measured with, as its section `settings` has it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from trimtab.config import MeasureConfig
from trimtab.files import flatten
from trimtab.method import Method

# The seed is the environment's; the others change where files go, or what a search chooses.
ASIDE = ("seed", "tracking", "artifacts", "on_missing", "search")


def settings_of(methods: Iterable[Method], config: MeasureConfig) -> dict[str, Any]:
    """Return the settings of a measurement that are not null, by the names that are typed."""
    nested = {name: item for name, item in asdict(config).items() if name not in ASIDE}
    nested["methods"] = {one.name: one.config() for one in methods}
    return {
        name: getattr(item, "value", item)
        for name, item in flatten(nested).items()
        if item is not None
    }
