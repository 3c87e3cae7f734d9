"""What is said on the way where standard error is no terminal."""

from __future__ import annotations

import re
import sys
import time
from io import BytesIO, TextIOWrapper

import pytest

from trimtab import progress


class Said:
    """What has been written to standard error so far."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture, self._text = capture, ""

    @property
    def lines(self) -> list[str]:
        self._text += self._capture.readouterr().err
        return self._text.splitlines()

    def wait_for(self, line: str) -> bool:
        """Return whether a line is said before long."""
        deadline = time.monotonic() + 20
        while not (found := any(re.fullmatch(line, one) for one in self.lines)):
            if time.monotonic() > deadline:
                break
            time.sleep(0.005)
        return found


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    return Said(capsys)


def test_a_long_pass_says_how_far_it_is_and_how_long_it_takes(monkeypatch, said):
    monkeypatch.setattr(progress, "EVERY", 0.02)
    for step in progress.track(range(4), "Activations", 4):
        if step == 3:
            assert said.wait_for(r"Activations ━+╸? +3/4 0:00:\d\d 0:00:\d\d")
    assert said.lines[-1].split()[2] == "4/4"


def test_a_long_wait_says_what_is_waited_for(monkeypatch, said):
    monkeypatch.setattr(progress, "EVERY", 0.02)
    with progress.waiting("Loading the model"):
        assert said.wait_for(r"Loading the model 0:00:\d\d")
    before = said.lines
    time.sleep(0.1)
    assert said.lines == before


def test_what_is_short_takes_one_line_or_none(said):
    with progress.waiting("Loading the model"):
        assert list(progress.track(range(100), "Activations", 100)) == list(range(100))
    (line,) = said.lines
    assert re.fullmatch(r"Activations ━+ 100/100 0:00:0\d 0:00:00", line)


def test_an_answer_is_escaped_where_standard_output_cannot_encode_it(monkeypatch):
    written = BytesIO()
    monkeypatch.setattr(sys, "stdout", TextIOWrapper(written, encoding="ascii"))
    progress.answer("r\xfc/report.md")
    assert written.getvalue() == b"r\\xfc/report.md\n"
