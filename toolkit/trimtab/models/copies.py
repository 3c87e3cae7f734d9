"""Copies of models, and whether they run themselves."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from functools import partial
from types import CodeType, FunctionType, MethodType
from typing import Any, TypeVar

from torch import Tensor, nn

from trimtab.errors import TrimtabError

Copied = TypeVar("Copied", bound=nn.Module)
RUNS = "_modules", "forward", "_forward_pre_hooks", "_forward_hooks"  # in a forward pass


def copy_of(model: Copied, shared: Iterable[Tensor] = ()) -> Copied:
    """Return a copy of a model, which runs as the model does.

    Parameters
    ----------
    model : nn.Module
    shared : iterable of Tensor
        What is not copied.

    Raises
    ------
    TrimtabError
        If `copy.deepcopy` makes no such copy: it leaves functions as they are, such as a compiled
        or wrapped ``forward``, or a hook, so that parts of the original would run; and it leaves
        out what ``module.compile()`` has made.
    """
    made = copy.deepcopy(model, {id(tensor): tensor for tensor in shared})
    compiled = (name for name, one in model.named_modules() if one._compiled_call_impl is not None)
    found = next(compiled, part_that_runs(model, made))
    if found is not None:
        raise TrimtabError(
            f"{found or 'the model'} cannot be copied for the comparison: it is compiled, or a "
            "function that was set as its forward or hook would run the original; measure "
            "without that, or with paired=False"
        )
    return made


def part_that_runs(other: nn.Module, model: nn.Module) -> str | None:
    """Return the name of a module with a function that runs modules of another model, or None."""
    parts = {id(module) for module in other.modules()}
    for name, module in model.named_modules():
        if _reaches([vars(module).get(own) for own in RUNS], parts):
            return name
    return None


def _reaches(value: Any, parts: set[int]) -> bool:
    """Say whether a value is, or holds, one of some objects."""
    seen: dict[int, Any] = {}
    ahead = [value]
    while ahead:
        one = ahead.pop()
        if id(one) in parts:
            return True
        if id(one) not in seen:
            seen[id(one)] = one
            ahead += _held(one)
    return False


def _held(value: Any) -> Iterator[Any]:
    """Yield what a function or a collection holds."""
    if isinstance(value, FunctionType):
        yield from (cell.cell_contents for cell in value.__closure__ or () if _is_set(cell))
        yield from (value.__defaults__, value.__kwdefaults__, vars(value))
        if not value.__module__.startswith(("torch.", "transformers.", "accelerate.")):
            names = set(_names(value.__code__))
            yield from (one for name, one in value.__globals__.items() if name in names)
    elif isinstance(value, MethodType):
        yield from (value.__func__, value.__self__)
    elif isinstance(value, partial):
        yield from (value.func, value.args, value.keywords, vars(value))
    elif isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list | tuple):
        yield from value


def _is_set(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for part in code.co_consts:
        if isinstance(part, CodeType):
            yield from _names(part)
