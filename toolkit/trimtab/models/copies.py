"""Copies of models that run themselves, whatever functions were set on their modules."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from functools import partial
from types import CellType, CodeType, FunctionType, MethodType
from typing import Any, TypeVar

from torch import Tensor, nn

from trimtab.models.edits import KNOWN_CODE

Copied = TypeVar("Copied", bound=nn.Module)
Known = dict[int, Any]  # copies, by the identities of their originals, as `copy.deepcopy` notes it


def copy_of(model: Copied, shared: Iterable[Tensor] = ()) -> Copied:
    """Return a copy of a model, with functions that run its own parts, compiled as the model is.

    `copy.deepcopy` leaves functions as they are: a compiled or wrapped ``forward``, or a hook,
    would run parts of the original. And it leaves out what ``module.compile()`` has made.

    Parameters
    ----------
    model : nn.Module
    shared : iterable of Tensor
        What is not copied.
    """
    known: Known = {id(tensor): tensor for tensor in shared}
    made = copy.deepcopy(model, known)
    for original, module in zip(model.modules(), made.modules(), strict=True):
        vars(module)["_compiled_call_impl"] = original._compiled_call_impl
        for name, value in vars(module).items():
            vars(module)[name] = _of_copy(value, known)
    return made


def runs_parts_of(model: nn.Module, other: nn.Module) -> bool:
    """Say whether a model has modules of another one, or functions that run such."""
    known: Known = dict.fromkeys(map(id, other.modules()))
    return any(
        _reaches(value, known) for module in model.modules() for value in vars(module).values()
    )


def _reaches(value: Any, known: Known) -> bool:
    """Say whether a value is, or holds, something of which there is a copy."""
    seen: Known = {}
    ahead = [value]
    while ahead:
        one = ahead.pop()
        if id(one) in known:
            return True
        if id(one) not in seen:
            seen[id(one)] = one
            ahead += _held(one)
    return False


def _held(value: Any) -> Iterator[Any]:
    """Yield what a function or a collection holds."""
    if isinstance(value, FunctionType):
        yield from _cells(value).values()
        yield from (value.__defaults__, value.__kwdefaults__, vars(value))
        yield from _globals(value).values()
    elif isinstance(value, MethodType):
        yield from (value.__func__, value.__self__)
    elif isinstance(value, partial):
        yield from (value.func, value.args, value.keywords, vars(value))
    elif isinstance(value, dict):
        yield from value.values()
    elif type(value) in (list, tuple):
        yield from value


def _of_copy(value: Any, known: Known) -> Any:
    """Return what a copy has in the place of a value: itself where that holds no original."""
    if id(value) in known or not _reaches(value, known):
        return known.get(id(value), value)
    if isinstance(value, FunctionType):
        return _function_of_copy(value, known)
    if isinstance(value, dict):
        return type(value)((name, _of_copy(one, known)) for name, one in value.items())
    parts = [_of_copy(one, known) for one in _held(value)]
    if isinstance(value, MethodType):
        return MethodType(*parts)
    if isinstance(value, partial):
        made = partial(parts[0], *parts[1], **parts[2])
        vars(made).update(parts[3])
        return made
    return type(value)(parts)


def _function_of_copy(function: FunctionType, known: Known) -> FunctionType:
    cells = {name: CellType() for name in function.__code__.co_freevars}
    others = {name: one for name, one in _globals(function).items() if _reaches(one, known)}
    space = {**function.__globals__} if others else function.__globals__
    made = FunctionType(function.__code__, space, closure=(*cells.values(),))
    known[id(function)] = made  # first, as it may hold itself
    for name, value in _cells(function).items():
        cells[name].cell_contents = _of_copy(value, known)
    for name, value in others.items():
        space[name] = _of_copy(value, known)
    made.__defaults__ = _of_copy(function.__defaults__, known)
    made.__kwdefaults__ = _of_copy(function.__kwdefaults__, known)
    made.__module__, made.__qualname__ = function.__module__, function.__qualname__
    vars(made).update(_of_copy(vars(function), known))
    return made


def _cells(function: FunctionType) -> dict[str, Any]:
    """Return what a function holds of the functions around it, where that is set."""
    found = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:
            continue
    return found


def _globals(function: FunctionType) -> dict[str, Any]:
    """Return the globals that a caller's function reads, without functions of other callers."""
    if _is_known(function):
        return {}
    every = function.__globals__
    found = {name: every[name] for name in _names(function.__code__) if name in every}
    return {
        name: value
        for name, value in found.items()
        if not isinstance(value, FunctionType) or value.__globals__ is every or _is_known(value)
    }


def _is_known(function: FunctionType) -> bool:
    return f"{function.__globals__.get('__name__')}.".startswith(KNOWN_CODE)


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for part in code.co_consts:
        if isinstance(part, CodeType):
            yield from _names(part)
