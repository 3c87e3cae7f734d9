"""Settings, declared once: default, meaning and range together, checked wherever they are set.

`--help`, the docstrings, the defaults that Hydra composes and the checks all come from here. This
module is imported before anything heavy, so that a mistyped setting is refused at once.
"""

from __future__ import annotations

from collections.abc import Iterator
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
    Self,
    TypeGuard,
    TypeVar,
    cast,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

from trimtab.errors import ConfigError, as_given, nearest
from trimtab.ranges import KIND, LISTS, accepted, closest, described, within, written

T = TypeVar("T")


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
        For a name that no setting has; for a value of the wrong type, not among the choices, or out
        of range; or one that is set later.
    """

    place: ClassVar[str] = ""

    def __new__(cls, *_: Any, **given: Any) -> Self:
        """Refuse what is no setting, which the checks of values would not come to."""
        for name, value in given.items():
            cls._require_known(name, value)
        return super().__new__(cls)

    def __setattr__(self, name: str, value: Any) -> None:
        self._require_known(name, value)
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
            value = self._converted(one, hint, value)
            object.__setattr__(self, one.name, value)
            items = value if isinstance(value, list) else [value]
            if not all(item is None or within(item, one.metadata["bounds"]) for item in items):
                self.require(False, one.name, accepted(one.metadata, hint))

    def require(self, holds: bool, name: str, expected: str) -> None:
        """Refuse the value of the setting `name` unless `holds`."""
        if not holds:
            raise ConfigError(self._key(name), getattr(self, name), f"expected {expected}")

    @classmethod
    def _require_known(cls, name: str, value: Any) -> None:
        known = [one.name for one in fields(cast(Any, cls))]
        if name not in known:
            expected = f"no such setting{nearest(name, known)}; there are: {', '.join(known)}"
            raise ConfigError(cls._key(name), value, expected)

    @classmethod
    def _key(cls, name: str) -> str:
        return f"{cls.place}.{name}" if cls.place else name

    def _converted(self, one: Field[Any], hint: Any, value: Any) -> Any:
        if type(value).__module__ == "numpy" and not getattr(value, "shape", True):
            value = value.item()
        kinds = [kind for kind in get_args(hint) or (hint,) if kind is not NoneType]
        optional = NoneType in get_args(hint)
        if value is None and optional:
            return None
        kind = kinds[0]
        if get_origin(hint) is list:
            fits = isinstance(value, list) and all(_is_plain(kind, item) for item in value)
            self.require(fits, one.name, LISTS[kind])
            return value
        if issubclass(kind, StrEnum):
            if value not in list(kind):
                expected = accepted(one.metadata, hint) + closest(value, hint)
                self.require(False, one.name, expected)
            return kind(value)
        if is_whole(value) if kind is int else _is_real(value):
            with suppress(OverflowError):  # a number that no float can be is out of any range
                value = {int: int, float: float}.get(kind, lambda same: same)(value)
        if kind in KIND and not _is_plain(kind, value):
            expected = f"expected {'null or ' if optional else ''}{KIND[kind]}"
            raise ConfigError(self._key(one.name), as_given(value), expected)
        return value


def is_whole(value: object) -> TypeGuard[int]:
    """Return whether a value is a whole number, one of NumPy's included; True and False are not."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_real(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def path_of(value: str | Path) -> Path:
    """Return the path that a setting's value means: a home folder may be written ``~``."""
    return Path(expanduser(value))  # Path's own forgets a ./ before it, and may raise


def describe(kind: type) -> Iterator[tuple[str, str]]:
    """Yield, for every setting of a class, its name with its default, and what it means."""
    hints = get_type_hints(kind)
    for one in _explained(kind):
        default = defaults(kind)[one.name]
        told = "required" if default == "???" else written(default)
        meaning, expected = one.metadata["meaning"], accepted(one.metadata, hints[one.name])
        yield f"{one.name}: {told}", meaning + (f" ({expected})" if expected else "")


def defaults(kind: type) -> dict[str, Any]:
    """Return the settings of a class with their defaults; ``???`` where one is required."""
    found = {}
    for one in _explained(kind):
        default = one.default if one.default_factory is MISSING else one.default_factory()
        found[one.name] = "???" if default is MISSING else default
    return found


def told(kind: type, name: str) -> tuple[str, str]:
    """Return what a setting of a class means, and what it takes, its type included."""
    (one,) = [one for one in _explained(kind) if one.name == name]
    return one.metadata["meaning"], described(one.metadata, get_type_hints(kind)[name])


def choice_meant(kind: type, name: str, value: Any) -> str:
    """Return a hint at the choice of a setting that was probably meant, or nothing."""
    return closest(value, get_type_hints(kind)[name])


def _explained(kind: Any) -> list[Field[Any]]:
    """Return the fields that `setting` declares; others are sections, explained on their own."""
    return [one for one in fields(kind) if "meaning" in one.metadata]


def _is_plain(kind: type, value: Any) -> bool:
    return type(value) is kind and (kind is not str or bool(str(value).strip()))
