"""Settings, declared once: default, meaning and range together, checked wherever they are set.

`--help`, the docstrings, the defaults that Hydra composes and the checks all come from here. This
module is imported before anything heavy, so that a mistyped setting is refused at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import MISSING, Field, dataclass, field, fields
from enum import StrEnum
from inspect import cleandoc
from numbers import Integral, Real
from os.path import expanduser
from pathlib import Path
from textwrap import fill, indent
from types import NoneType
from typing import (
    Any,
    ClassVar,
    TypeGuard,
    TypeVar,
    cast,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

from trimtab.errors import ConfigError

T = TypeVar("T")
KIND = {bool: "true or false", int: "a whole number", float: "a number", str: "a text, not empty"}


def setting(
    *,
    default: Any = MISSING,
    meaning: str,
    unit: str = "",
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
) -> Any:
    """Declare a field of a class under `settings`.

    Parameters
    ----------
    default : Any
        Where it is left out, the setting is required. Of a list, every object gets its own copy.
    meaning : str
        One sentence for `--help` and the docstring.
    unit : str
        Plural: ``bytes``, ``tokens``.
    at_least, above, at_most, below : float, optional
        The range, its ends included (`at_least`, `at_most`) or not; of a list, that of its items.
    """
    bounds = {"at least": at_least, "above": above, "at most": at_most, "below": below}
    given = {name: bound for name, bound in bounds.items() if bound is not None}
    metadata = {"meaning": meaning, "unit": unit, "bounds": given}
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass_transform(kw_only_default=True, field_specifiers=(setting,))
def settings(kind: type[T]) -> type[T]:
    """Make a class of `setting` fields a dataclass, and list them in its docstring."""
    made: Any = dataclass(kw_only=True)(kind)
    lines = []
    for name, text in describe(made):
        lines += [name, indent(fill(text, 92), " " * 4)]
    made.__doc__ = f"{cleandoc(kind.__doc__ or '')}\n\nParameters\n----------\n" + "\n".join(lines)
    return cast(type[T], made)


class Settings:
    """What classes under `settings` derive from: converts and checks the values it is given.

    They stay as they are given; `dataclasses.replace` makes an object with others.

    Raises
    ------
    ConfigError
        For a value of the wrong type, not among the choices, or out of range; or one that is set
        later.
    """

    place: ClassVar[str] = ""

    def __setattr__(self, name: str, value: Any) -> None:
        known = [one.name for one in fields(cast(Any, self))]
        if name not in known:
            expected = f"no such setting; there are: {', '.join(known)}"
            raise ConfigError(self._key(name), value, expected)
        if name in vars(self) and name in [one.name for one in _explained(type(self))]:
            raise ConfigError(
                self._key(name), value, "settings are not changed later, nor checked then: make "
                f"another {type(self).__name__}, as dataclasses.replace does"
            )  # fmt: skip
        super().__setattr__(name, value)

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for one in _explained(type(self)):
            hint, value = hints[one.name], getattr(self, one.name)
            several = get_origin(hint) is list
            self.require(not several or isinstance(value, list | tuple), one.name, "a list: [1,2]")
            kind, given = (get_args(hint)[0], value) if several else (hint, [value])
            items = [self._converted(one, kind, item) for item in given]
            object.__setattr__(self, one.name, items if several else items[0])
            if not all(item is None or _within(item, one.metadata["bounds"]) for item in items):
                self.require(False, one.name, _range(one, hint))

    def require(self, holds: bool, name: str, expected: str) -> None:
        """Refuse the value of the setting `name` unless `holds`."""
        if not holds:
            raise ConfigError(self._key(name), getattr(self, name), f"expected {expected}")

    def _key(self, name: str) -> str:
        return f"{self.place}.{name}" if self.place else name

    def _converted(self, one: Field[Any], hint: Any, value: Any) -> Any:
        kinds = [kind for kind in get_args(hint) or (hint,) if kind is not NoneType]
        optional = NoneType in get_args(hint)
        if value is None and optional:
            return None
        kind = kinds[0]
        if issubclass(kind, StrEnum):
            if value not in list(kind):
                self.require(False, one.name, _range(one, hint))
            return kind(value)
        if is_whole(value) if kind is int else _is_real(value):
            with suppress(OverflowError):  # a number that no float can be is out of any range
                value = {int: int, float: float}.get(kind, lambda same: same)(value)  # NumPy's, too
        if kind in KIND and (type(value) is not kind or (kind is str and not value.strip())):
            self.require(False, one.name, ("null or " if optional else "") + KIND[kind])
        return value


def is_whole(value: object) -> TypeGuard[int]:
    """Return whether a value is a whole number, one of NumPy's included; True and False are not."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_real(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def path_of(value: str) -> Path:
    """Return the path that a setting's value means: a home folder may be written ``~``."""
    return Path(expanduser(value))  # Path's own forgets a ./ before it, and may raise


def describe(kind: type) -> Iterator[tuple[str, str]]:
    """Yield, for every setting of a class, its name with its default, and what it means."""
    hints = get_type_hints(kind)
    for one in _explained(kind):
        default = defaults(kind)[one.name]
        written = "required" if default == "???" else _written(default)
        meaning, expected = one.metadata["meaning"], _range(one, hints[one.name])
        yield f"{one.name}: {written}", meaning + (f" ({expected})" if expected else "")


def defaults(kind: type) -> dict[str, Any]:
    """Return the settings of a class with their defaults; ``???`` where one is required."""
    found = {}
    for one in _explained(kind):
        default = one.default if one.default_factory is MISSING else one.default_factory()
        found[one.name] = "???" if default is MISSING else default
    return found


def _explained(kind: Any) -> list[Field[Any]]:
    """Return the fields that `setting` declares; others are sections, explained on their own."""
    return [one for one in fields(kind) if "meaning" in one.metadata]


def _within(value: Any, bounds: dict[str, float]) -> bool:
    holds: dict[str, Callable[[float], bool]] = {
        "at least": lambda bound: value >= bound,
        "above": lambda bound: value > bound,
        "at most": lambda bound: value <= bound,
        "below": lambda bound: value < bound,
    }
    finite = not bounds or isinstance(value, int) or math.isfinite(value)
    return finite and all(holds[name](bound) for name, bound in bounds.items())


def _range(one: Field[Any], hint: Any) -> str:
    """Say what is accepted: ``null or at least 1 tokens``, ``slot or mega``."""
    kinds = get_args(hint) or (hint,)
    choices = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, StrEnum)]
    if choices:
        text = " or ".join(choices[0]) if len(choices[0]) < 3 else f"one of {', '.join(choices[0])}"
    else:
        limits = (f"{name} {bound}" for name, bound in one.metadata["bounds"].items())
        text = " and ".join(limits)
        unit = one.metadata["unit"]
        unit = unit.removesuffix("s") if text.endswith(" 1") else unit
        text = f"{text} {unit}" if text and unit else text or unit
        text = f"each {text}" if text and get_origin(hint) is list else text
    return f"null or {text}" if text and NoneType in kinds else text


def _written(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(_written, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(value)
