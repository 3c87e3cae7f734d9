"""Changes to a model, left in any order."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack
from types import SimpleNamespace

import pytest
from torch import nn

from trimtab.models.changes import changes_of, undone_in_order, undone_together


class Thing(SimpleNamespace):
    """Something that can be changed, and weakly referenced."""


@undone_in_order
def named(thing: Thing, name: str, fails: bool = False) -> Iterator[str]:
    before, thing.name = thing.name, name
    try:
        yield before
    finally:
        thing.name = before
        if fails:
            raise OSError(name)


@pytest.mark.parametrize("order", itertools.permutations(range(3)))
def test_in_whatever_order_they_are_left_all_are_undone(order):
    thing = Thing(name="own")
    changes = [named(thing, name) for name in "abc"]
    assert [change.__enter__() for change in changes] == ["own", "a", "b"]
    left = set()
    for index in order:
        changes[index].__exit__(None, None, None)
        left.add(index)
        kept = max(set(range(3)) - left, default=-1)
        # What is at work on top stays as it was made.
        assert thing.name == ["own", "a", "b", "c"][kept + 1]
        assert len(changes_of(thing)) == kept + 1


def test_one_that_cannot_be_undone_keeps_no_other_from_being_undone():
    thing = Thing(name="own")
    first, second = named(thing, "a"), named(thing, "b", fails=True)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    with pytest.raises(OSError, match="b"):
        second.__exit__(None, None, None)
    assert thing.name == "own"
    assert not changes_of(thing)


def test_what_fails_while_it_is_made_is_no_change():
    thing = Thing()
    with pytest.raises(AttributeError), named(thing, "a"):
        pass
    assert not changes_of(thing)


def test_the_changes_of_a_copy_are_undone_in_one_order_with_those_of_the_original():
    original = Thing(name="own")
    first = named(original, "a")
    first.__enter__()
    copied = Thing(name="own")
    undone_together(copied, original)
    with named(copied, "b"):
        assert changes_of(copied) == changes_of(original)
        first.__exit__(None, None, None)
        assert (original.name, copied.name) == ("a", "b")
    assert (original.name, copied.name) == ("own", "own")


def test_a_change_of_one_thing_is_none_of_another():
    first, second = nn.Linear(1, 1), nn.Linear(1, 1)
    for one in (first, second):
        one.name = "own"
    with ExitStack() as later:
        with named(first, "a"):
            later.enter_context(named(second, "b"))
        assert (first.name, second.name) == ("own", "b")
    assert second.name == "own"
