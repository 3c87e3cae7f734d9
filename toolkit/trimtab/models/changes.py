"""Changes made to a model for a time, by several callers and threads at once.

Every change puts back what it found, so they are undone in the reverse of the order they were made
in, whatever the order they are left in.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import wraps
from threading import RLock
from typing import Any, Concatenate, ParamSpec, TypeVar

from trimtab.interrupts import uninterrupted

P = ParamSpec("P")
T = TypeVar("T")
Changed = TypeVar("Changed")


class Change:
    """A change at work; `left` once its ``with`` has ended."""

    def __init__(self, undo: ExitStack) -> None:
        self.undo = undo
        self.left = False


@dataclass
class _State:
    lock: Any = field(default_factory=RLock)
    changes: list[Change] = field(default_factory=list)


_STATES: dict[int, _State] = {}  # by the identity of what is changed, for as long as it lives
_LOCK = threading.Lock()


def _state(changed: object) -> _State:
    with _LOCK:
        if id(changed) not in _STATES:
            _keep(changed, _State())
        return _STATES[id(changed)]


def _keep(changed: object, state: _State) -> None:
    _STATES[id(changed)] = state
    weakref.finalize(changed, _STATES.pop, id(changed), None).atexit = False


def undone_together(copy: object, original: object) -> None:
    """Have the changes of a new copy undone in one order with those of its original."""
    state = _state(original)
    with _LOCK:
        _keep(copy, state)


def lock_of(changed: object) -> Any:
    """Return the lock that whoever changes or runs a model holds; a thread may take it again."""
    return _state(changed).lock


def changes_of(changed: object) -> tuple[Change, ...]:
    """Return the changes at work on a model, the earliest first."""
    return tuple(_state(changed).changes)


def undone_in_order(
    change: Callable[Concatenate[Changed, P], Iterator[T]],
) -> Callable[Concatenate[Changed, P], AbstractContextManager[T]]:
    """Make a generator function that changes its first argument a context manager.

    A change that is left before a later one of the same object is undone together with that one:
    otherwise the later one would put back what the earlier one had made. Ctrl-C waits until it is
    undone.
    """
    context = contextmanager(change)

    @wraps(change)
    @contextmanager
    def held(changed: Changed, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        state = _state(changed)
        with state.lock, ExitStack() as undo:
            made = undo.enter_context(context(changed, *args, **kwargs))
            own = Change(undo.pop_all())
            state.changes.append(own)
        try:
            yield made
        finally:
            own.left = True
            with state.lock, uninterrupted(), ExitStack() as undo:
                kept = len(state.changes)
                while kept and state.changes[kept - 1].left:
                    kept -= 1
                for ended in state.changes[kept:]:
                    undo.push(ended.undo)
                del state.changes[kept:]

    return held
