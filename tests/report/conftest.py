import pytest


@pytest.fixture
def undrawn(monkeypatch) -> None:
    """Have reports be built without the time that pictures take: their files are empty."""
    monkeypatch.setattr("trimtab.report.build.write_png", lambda plot, path: path.touch())
    monkeypatch.setattr("trimtab.report.pages.svg", lambda plot, panel: "<svg></svg>")
