"""From the dotted name of a class, as a setting has it, to the class."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any

from trimtab.errors import ConfigError, first_line, nearest


def class_named(setting: str, name: Any) -> Any:
    """Return the class that a setting names.

    Raises
    ------
    ConfigError
        With the reason why there is none: whatever its module raises is among them.
    """
    try:
        found = _found(name)
    except (Exception, SystemExit) as error:  # a module may raise any
        kind = "" if isinstance(error, ImportError) else f"{type(error).__name__}: "
        reason = f"expected the dotted name of a class: {kind}{first_line(error)}"
        raise ConfigError(setting, name, reason) from error
    if not isinstance(found, type):
        reason = f"expected the dotted name of a class, it is a {type(found).__name__}"
        raise ConfigError(setting, name, reason)
    return found


def _found(name: Any) -> Any:
    """Return what has a dotted name; modules on the way to it are imported."""
    first, *rest = parts = name.split(".") if isinstance(name, str) else [""]
    if not all(part.isidentifier() for part in parts):
        raise ImportError("write MODULE.CLASS")
    found: Any = import_module(first)
    place = first
    for part in rest:
        inner = f"{place}.{part}"
        if not hasattr(found, part) and isinstance(found, ModuleType):
            _import(inner)
        if not hasattr(found, part):
            raise ImportError(f"{place} has no {part}{nearest(part, dir(found))}")
        found, place = getattr(found, part), inner
    return found


def _import(name: str) -> None:
    """Import a module if there is one; what it imports has to be there."""
    try:
        import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
