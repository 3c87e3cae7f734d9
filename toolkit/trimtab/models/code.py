"""Whose code a function is, and what it computes by."""

from __future__ import annotations

import dis
import hashlib
import inspect
from collections.abc import Collection, Iterator
from contextlib import suppress
from functools import partial
from types import CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trimtab.contents import bytes_of

CONSTANTS = bool, int, float, complex, str, bytes, type(None), type(...)
DIGITS = 12


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


def digest_of(value: Any) -> str:
    """Return a short digest of a value or of a function: of its bytecode and the values it holds.

    Those are numbers, strings and tensors, alone or in tuples, among its defaults, what it encloses
    and the arguments and attributes bound to it, and the same of functions among them. What it may
    change itself while it runs is left out: lists, other objects, and variables and attributes that
    it assigns to. Another version of Python may give another digest.
    """
    digest = hashlib.sha256()
    for part in _parts(value, set()):
        digest.update(part)
        digest.update(b"\0")
    return digest.hexdigest()[:DIGITS]


def _parts(value: Any, seen: set[int]) -> Iterator[bytes | memoryview]:
    """Yield the bytes of a value, and of a function all that it computes by."""
    if isinstance(value, CONSTANTS):
        yield repr(value).encode()
    elif isinstance(value, np.generic):
        yield repr(value.item()).encode()
    elif isinstance(value, torch.dtype | torch.device):
        yield str(value).encode()
    elif isinstance(value, Tensor):
        if not value.is_meta and value.layout is torch.strided:
            yield f"{value.dtype}{tuple(value.shape)}".encode()
            yield bytes_of(value)
    elif isinstance(value, np.ndarray):
        yield f"{value.dtype}{value.shape}".encode()
        yield value.tobytes()
    elif isinstance(value, frozenset):
        yield repr(sorted(map(repr, value))).encode()
    elif isinstance(value, tuple):
        for one in value:
            yield from _parts(one, seen)
    elif isinstance(value, CodeType):
        yield value.co_code
        yield from _parts((value.co_names, value.co_consts), seen)
    elif callable(value) and not isinstance(value, nn.Module | type) and id(value) not in seen:
        seen.add(id(value))
        yield from _parts_of_function(value, seen)


def _parts_of_function(function: Any, seen: set[int]) -> Iterator[bytes | memoryview]:
    if isinstance(function, partial):
        bound = sorted(function.keywords.items())
        yield from _parts((function.func, function.args, *bound), seen)
    elif isinstance(function, MethodType):
        yield from _parts(function.__func__, seen)
        yield from _attributes(function.__self__, function.__func__, seen)
    elif isinstance(function, FunctionType):
        code, cells = function.__code__, function.__closure__ or ()
        keywords = sorted((function.__kwdefaults__ or {}).items())
        yield from _parts((code, function.__defaults__, *keywords), seen)
        assigned, kept = _assigned(code), []
        for name, cell in zip(code.co_freevars, cells, strict=True):
            if name not in assigned:
                with suppress(ValueError):  # of a cell that is empty yet
                    kept.append(cell.cell_contents)
        yield from _parts(tuple(kept), seen)
        yield from _parts(getattr(function, "__wrapped__", None), seen)
    else:
        yield repr([*_code(function)]).encode()
        call = inspect.getattr_static(type(function), "__call__")
        if isinstance(call, FunctionType):
            yield from _parts(call, seen)
            yield from _attributes(function, call, seen)


def _attributes(owner: Any, function: Any, seen: set[int]) -> Iterator[bytes | memoryview]:
    """Yield what an object of somebody's class has that a method of it reads and does not set."""
    if isinstance(owner, nn.Module | type):
        return
    code = getattr(function, "__code__", None)
    assigned = _assigned(code) if code else set()
    for name, value in sorted(getattr(owner, "__dict__", {}).items()):
        if name not in assigned:
            yield from _parts((name, value), seen)


def _assigned(code: CodeType) -> set[str]:
    """Return the enclosed variables and the attributes that code assigns to."""
    setting = "STORE_DEREF", "STORE_ATTR"
    return {str(one.argval) for one in dis.get_instructions(code) if one.opname in setting}
