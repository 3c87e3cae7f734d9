import pytest

from kernels.sparse_linear import cpu


@pytest.fixture
def compiled() -> None:
    """Skip a test of what only the C++ kernels do where there is no compiler for them."""
    if reason := cpu.load():
        pytest.skip(reason)
