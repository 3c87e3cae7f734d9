"""Which texts of a measurement a calibration has read."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from trimtab.corpus import Corpus, Document
from trimtab.evaluation.held_out import seen_before

TEXTS = [f"Text {number}\nhas two lines.\n" for number in range(10)]
OTHERS = [f"Other {number}\nhas two lines.\n" for number in range(3)]
CHANGES = {
    "none": lambda text: text,
    "line ends": lambda text: text.replace("\n", "\r\n"),
    "ends of lines": lambda text: text.replace("\n", " \t\n"),
    "no end": lambda text: text.strip(),
    "ends of the text": lambda text: f"\n {text}\n\n",
}


def calibrated(texts: list[str]) -> Any:
    corpus = Corpus.for_calibration(texts)
    return SimpleNamespace(corpus={"name": "texts", "documents": corpus.document_likenesses()})


def seen(texts: list[str], artifact: Any) -> str | None:
    return seen_before([Document("a text", text) for text in texts], {"larosa": artifact})


@pytest.mark.parametrize("measured", CHANGES)
@pytest.mark.parametrize("read", CHANGES)
def test_a_copy_of_what_a_calibration_has_read_is_not_held_out(read, measured):
    artifact = calibrated([*map(CHANGES[read], TEXTS)])
    texts = [*map(CHANGES[measured], [*TEXTS, *OTHERS])]
    said = "10 of the 13 texts measured on were read by the calibration of larosa: "
    assert seen(texts, artifact).startswith(said)
    assert seen(texts[10:], artifact) is None
