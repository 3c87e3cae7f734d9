"""Which methods are at work on which model, so that none is put where it would do harm."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

from trimtab.errors import MisfitError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from trimtab.method import Method


class AtWork(NamedTuple):
    """A method that is applied, and what it claimed then."""

    method: Method
    claims: frozenset[str]


_AT_WORK: WeakKeyDictionary[PreTrainedModel, list[AtWork]] = WeakKeyDictionary()


@contextmanager
def at_work(method: Method, model: PreTrainedModel) -> Iterator[None]:
    """Have it known within the block that the method is at work on the model.

    Raises
    ------
    MisfitError
        See `require_free`.
    """
    require_free(method, model)
    present = _AT_WORK.setdefault(model, [])
    one = AtWork(method, method.claims(model))
    present.append(one)
    try:
        yield
    finally:
        present.remove(one)


def require_free(method: Method, model: PreTrainedModel) -> None:
    """Refuse a method that would change what another one has changed, or that comes too late.

    Raises
    ------
    MisfitError
        If the method is at work on the model already, or one that changes the same or belongs
        to a later stage.
    """
    for other, claims in _AT_WORK.get(model, ()):
        name = other.name
        if name == method.name:
            raise MisfitError(f"{name} is at work on the model already: leave its `with` first")
        if method.stage < other.stage:
            raise MisfitError(
                f"{name} is at work on the model, and {method.name} comes before it: name both in "
                f"one stack, or leave the `with` of {name} first"
            )
        if shared := overlap(method.claims(model), claims):
            raise MisfitError(
                f"{name} is at work on the model, and {method.name} would change its {shared} "
                f"too: leave the `with` of {name} first"
            )


def overlap(first: Iterable[str], second: Iterable[str]) -> str | None:
    """Return what two methods both claim: one name, or the shorter where it holds the other."""
    for claim in sorted(first):
        for other in sorted(second):
            if claim == other or claim.startswith(f"{other}.") or other.startswith(f"{claim}."):
                return min(claim, other, key=len)
    return None
