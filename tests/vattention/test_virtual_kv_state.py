from __future__ import annotations

import pytest

from tests.vattention.soak import ROWS, run

OPERATIONS = {
    "ensure", "rewind", "acquire", "fork", "truncate", "release", "trim", "sleep", "failed",
    "refused",
}  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_random_operations_lose_and_leak_nothing(cpu_pool, seed):
    pool = cpu_pool(budget=2 * ROWS * 4096)
    assert run(800, seed, pool).keys() == OPERATIONS
    pool.close()
