"""What Hydra's grammar makes of one argument of the command line."""

from __future__ import annotations

import re
from collections.abc import Iterable

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override

from trimtab.registry import group_options

MULTIRUN = ("-m", "--multirun")


def key_of(argument: str) -> str | None:
    """Return the key of ``key=value``, without plus signs; None for any other argument."""
    match = re.match(r"\+{0,2}([A-Za-z_][\w.]*)=", argument)
    return match[1] if match else None


def parsed(overrides: Iterable[str]) -> list[Override]:
    """Return the overrides as Hydra reads them.

    Raises
    ------
    hydra.errors.HydraException
        If its grammar cannot read one.
    """
    return list(OverridesParser.create().parse_overrides(list(overrides)))


def choices(override: Override) -> list[str]:
    """Return the values of an override: of one that does not sweep, its only one."""
    value = override.value()
    if isinstance(value, Glob):
        return value.filter(group_options(override.key_or_group))
    if override.is_sweep_override():
        return list(override.sweep_string_iterator())
    return [str(override.get_value_element_as_str())]
