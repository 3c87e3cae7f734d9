"""Fixtures for the tests of the kernels."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from trimtab_kernels.sparse_linear import cpu


@pytest.fixture(params=[1, 2, 7])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Run a test with different numbers of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def compiled() -> None:
    """Skip a test of the C++ kernels if there is no compiler for them."""
    if reason := cpu.load():
        pytest.skip(reason)
