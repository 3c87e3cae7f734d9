import pytest

from tests.conftest import drawn
from trimtab.larosa.thresholds import smallest_kept


@pytest.mark.parametrize("share", [0.0, 1e-4, 0.4, 0.999])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_the_smallest_kept_is_the_one_that_sorting_finds(share, scale):
    magnitudes = (drawn(3, 400) * scale).abs()
    magnitudes[0, :50] = 0
    magnitudes[1, :50] = magnitudes[1, 50]  # ties
    dropped = round(share * magnitudes.numel())
    expected = float(magnitudes.flatten().sort().values[dropped]) if dropped else 0.0
    assert smallest_kept(magnitudes, share) == expected
