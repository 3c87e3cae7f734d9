"""What a setting accepts, checked and in words, for `trimtab.settings`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from enum import StrEnum
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin

from trimtab.errors import ConfigError, nearest

Choice = TypeVar("Choice", bound=StrEnum)

KIND = {bool: "true or false", int: "a whole number", float: "a number", str: "a text, not empty"}
LISTS = {int: "a list of whole numbers: [1,2]", str: "a list of texts: [A,B]"}


def within(value: Any, bounds: Mapping[str, float]) -> bool:
    """Return whether a value is within bounds, by their names."""
    holds: dict[str, Callable[[float], bool]] = {
        "at least": lambda bound: value >= bound,
        "above": lambda bound: value > bound,
        "at most": lambda bound: value <= bound,
        "below": lambda bound: value < bound,
    }
    finite = not bounds or isinstance(value, int) or math.isfinite(value)
    return finite and all(holds[name](bound) for name, bound in bounds.items())


def accepted(metadata: Mapping[str, Any], hint: Any) -> str:
    """Say what is accepted: ``null or at least 1 tokens``, ``slot or mega``."""
    kinds = get_args(hint) or (hint,)
    if choices := _choices(hint):
        text = " or ".join(choices) if len(choices) < 3 else f"one of {', '.join(choices)}"
    else:
        limits = (f"{name} {bound}" for name, bound in metadata["bounds"].items())
        text = " and ".join(limits)
        unit = metadata["unit"]
        unit = unit.removesuffix("s") if text.endswith(" 1") else unit
        text = f"{text} {unit}" if text and unit else text or unit
        text = f"each {text}" if text and get_origin(hint) is list else text
    return f"null or {text}" if text and NoneType in kinds else text


def closest(value: Any, hint: Any) -> str:
    """Return a hint at the choice that was probably meant, or nothing."""
    return nearest(str(value), _choices(hint))


def member_of(kind: type[Choice], value: Any, name: str) -> Choice:
    """Return the member that a value is, or is the name of; `name` is the argument's.

    Raises
    ------
    ConfigError
        If there is none.
    """
    if value not in list(kind):
        expected = f"expected {accepted({}, kind)}{closest(value, kind)}"
        raise ConfigError(name, value, expected)
    return kind(value)


def _choices(hint: Any) -> list[str]:
    kinds = get_args(hint) or (hint,)
    enums = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, StrEnum)]
    return [str(one) for kind in enums for one in kind]


def described(metadata: Mapping[str, Any], hint: Any) -> str:
    """Say what is accepted, with the type: ``null or a whole number, at least 1 token``."""
    (kind,) = [part for part in get_args(hint) or (hint,) if part is not NoneType]
    name = LISTS[kind] if get_origin(hint) is list else KIND.get(kind, "")
    limits = accepted(metadata, hint).removeprefix("null or ")
    link = ", " if metadata["bounds"] else " of "  # a unit alone
    null = "null or " if NoneType in get_args(hint) else ""
    return null + link.join(filter(None, (name, limits)))


def written(value: Any) -> str:
    """Return a value as it is typed."""
    if isinstance(value, list):
        return f"[{','.join(map(written, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(value)
