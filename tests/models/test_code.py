"""What a function computes by, in short."""

from __future__ import annotations

from functools import partial, wraps
from typing import Any

import torch

from trimtab.models.code import digest_of


def adding(much: Any) -> Any:
    return lambda x: x + much


def by_default(much: Any) -> Any:
    def add(x: Any, much: Any = much) -> Any:
        return x + much

    return add


def by_keyword(much: Any) -> Any:
    def add(x: Any, *, much: Any = much) -> Any:
        return x + much

    return add


def wrapping(much: Any) -> Any:
    inner = adding(much)

    @wraps(inner)
    def run(x: Any) -> Any:
        return inner(x)

    return run


class Adder:
    """What adds, and counts how often."""

    def __init__(self, much: Any) -> None:
        self.much, self.calls = much, 0

    def __call__(self, x: Any) -> Any:
        self.calls += 1
        return x + self.much

    def method(self, x: Any) -> Any:
        self.calls += 1
        return x + self.much


KINDS = [
    adding,
    by_default,
    by_keyword,
    wrapping,
    Adder,
    lambda much: Adder(much).method,
    lambda much: partial(pow, much),
    lambda much: partial(pow, exp=much),
]


def test_values_that_a_function_holds_are_in_its_digest():
    values = [1, 2, "1", (1, "a"), torch.tensor(1), torch.tensor(2), torch.tensor([1]), adding(3)]
    for kind in KINDS:
        digests = [digest_of(kind(value)) for value in values]
        assert len({*digests}) == len(values)
        assert digests == [digest_of(kind(value)) for value in values]


def test_code_is_in_its_digest():
    functions = [
        lambda x: x,
        lambda x: -x,
        lambda x: x * 2,
        lambda x: x * 3,
        lambda x: x.sin(),
        lambda x: x.cos(),
        lambda x: [y * 2 for y in x],
        lambda x: [y * 3 for y in x],
        torch.sin,
        torch.cos,
    ]
    assert len({digest_of(function) for function in functions}) == len(functions)


def test_what_a_function_counts_is_not_in_its_digest():
    adder = Adder(1)
    for function in (adder, adder.method):
        before = digest_of(function)
        function(1)
        assert digest_of(function) == before


def test_functions_that_enclose_themselves_have_a_digest():
    def one(x: Any) -> Any:
        return two(x) if x else later

    def two(x: Any) -> Any:
        return one(x - 1)

    digest = digest_of(one)
    later = 1
    assert digest_of(one) != digest
