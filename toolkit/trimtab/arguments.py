"""What callers hand over, told from what is easily mistaken for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from typing import Any, TypeGuard

NAMED = "keys", "columns", "column_names"  # of tables, whose iteration yields the names


def is_listing(value: object) -> TypeGuard[Iterable[Any]]:
    """Return whether iterating a value yields what it holds, in an order.

    Mappings and tables (a DataFrame, a Dataset) yield names, a text its characters, and a set has
    no order.
    """
    if not isinstance(value, Iterable) or isinstance(value, str | bytes | Mapping | Set):
        return False
    dimensions = getattr(value, "ndim", None)
    if dimensions == 1:  # a Series has keys, and yields its values
        return True
    return dimensions != 0 and not any(hasattr(value, name) for name in NAMED)


def shown(value: object) -> str:
    """Return what a value looks like, in one short line."""
    return f"{' '.join(repr(value).split()):.60}"
