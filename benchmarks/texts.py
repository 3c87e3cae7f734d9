"""The texts that benchmarks calibrate on and measure: Python's documentation and source code."""

from __future__ import annotations

import sysconfig
from pathlib import Path

from trimtab.corpora import PythonDocs
from trimtab.corpus import Corpus, Document, load_corpus

CALIBRATION, VALIDATION = 0.7, 0.1


def python_texts() -> dict[str, Corpus]:
    """Return both by the name that the command line has for them."""
    return {"docs": python_docs(), "source": python_source()}


def python_docs() -> Corpus:
    return load_corpus(PythonDocs(calibration=CALIBRATION, validation=VALIDATION))


def python_source() -> Corpus:
    """Return the modules of the standard library that are in no package."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    documents = [Document(path.name, path.read_text("utf-8", "replace")) for path in files]
    return Corpus("python source", documents, CALIBRATION, VALIDATION)
