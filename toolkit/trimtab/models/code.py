"""Whose code a function is."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import partial
from typing import Any


def code_beside(function: Any, known: Collection[str]) -> str | None:
    """Return the qualified name of the first code in a function that is in no known package.

    Parameters
    ----------
    function : callable
        Looked at with all that it wraps.
    known : collection of str
        Prefixes of modules, each with its last dot.

    Returns
    -------
    str or None
        None where all of it is known.
    """
    for module, name in _code(function):
        if not f"{module}.".startswith(tuple(known)):
            return f"{module}.{name}"
    return None


def _code(function: Any) -> Iterator[tuple[str, str]]:
    """Yield module and name of a function, and of each that it wraps."""
    while function is not None:
        if isinstance(function, partial):
            function = function.func
            continue
        named = function if hasattr(function, "__qualname__") else type(function)
        globals_ = getattr(function, "__globals__", {})  # `wraps` leaves these alone
        yield globals_.get("__name__", named.__module__), named.__qualname__
        function = getattr(function, "__wrapped__", None)
