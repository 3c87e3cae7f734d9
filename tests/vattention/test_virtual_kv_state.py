"""Arbitrary series of operations on a cache; see `tests.vattention.machine`."""

from __future__ import annotations

from tests.vattention.machine import run

DONE = {
    "ensure", "rewind", "acquire", "fork", "truncate", "release", "trim", "sleep", "failed",
    "refused",
}  # fmt: skip


def test_any_series_of_operations_loses_and_leaks_nothing(cpu_pool):
    assert run(20, cpu_pool, derandomize=True).keys() == DONE
