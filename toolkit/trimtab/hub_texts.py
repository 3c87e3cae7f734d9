"""Text in a dataset that the package datasets loads, for `trimtab.corpora`."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from textwrap import shorten
from typing import TYPE_CHECKING

from trimtab.errors import ConfigError, TrimtabError
from trimtab.progress import waiting
from trimtab.settings import path_of
from trimtab.text_files import text_of

if TYPE_CHECKING:
    from datasets import Dataset

REPORT = "Failed to "  # how it begins to say which file it cannot read
KIND = re.compile(r" with error (<class '[^']*'>|\w+): ")
UNTOLD = "An error occurred while generating the dataset"  # where its cause says what
SAVED = "state.json"  # what Dataset.save_to_disk writes beside one split
SUBSETS = re.compile(r"[Aa]vailable(?: configs)?: \[(.*?)\]")  # as it lists them
LONGEST = 400  # characters of a reason


def load(name: str, subset: str | None, split: str, revision: str | None) -> Dataset:
    """Load one split of a dataset, or of what Dataset.save_to_disk wrote, which has one.

    Raises
    ------
    TrimtabError
        If the package datasets is not installed.
    ConfigError
        If the dataset cannot be had, or a file of it cannot be read.
    """
    try:
        import datasets
    except ImportError as error:
        needed = "corpus=hub needs the datasets package: pip install 'trimtab[datasets]'"
        raise TrimtabError(needed) from error
    datasets.disable_progress_bars()
    folder = path_of(name)
    place = str(folder) if folder.is_dir() else name
    with _reports() as reports:
        try:
            with waiting(f"Loading the dataset {name}"):
                if (folder / SAVED).is_file():
                    files = [escape(str(one)) for one in sorted(folder.glob("*.arrow"))]
                    return datasets.load_dataset("arrow", data_files=files, split=split)
                return datasets.load_dataset(place, subset, split=split, revision=revision)
        except Exception as error:  # datasets raises many unrelated types for "cannot be had"
            reason = KIND.sub(": ", reports[-1]) if reports else _reason(error)
            if several := SUBSETS.search(str(error)):
                names = several[1].replace("'", "")
                reason = f"write corpus.subset=NAME; there are: {names}"
            raise ConfigError("corpus.name", name, f"cannot be loaded: {reason}") from error


def texts(rows: Dataset, field: str, name: str) -> Iterator[tuple[int, str]]:
    """Yield the number and the text of every row; no other column is decoded.

    Raises
    ------
    TrimtabError
        If there is no such column, or it holds something else.
    """
    if field not in rows.column_names:
        text_of(dict.fromkeys(rows.column_names), field, name)  # says which there are
    read = iter(rows.select_columns([field]))
    for number in range(len(rows)):
        place = f"{name}[{number}]"
        try:
            row = next(read)
        except Exception as error:  # decoding fails in any way
            reason = f"cannot be read ({_reason(error)}): expected a text"
            raise TrimtabError(f"{place}: the field {field!r} {reason}") from error
        yield number, text_of(row, field, place)


@contextmanager
def _reports() -> Iterator[list[str]]:
    """Gather what datasets would print of a file that it cannot read: the error lacks its name."""
    reports: list[str] = []

    def passes(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if not message.startswith(REPORT):
            return True
        reports.append(message.splitlines()[0])
        return False

    handlers = logging.getLogger("datasets").handlers
    for handler in handlers:
        handler.addFilter(passes)
    try:
        yield reports
    finally:
        for handler in handlers:
            handler.removeFilter(passes)


def _reason(error: BaseException) -> str:
    """Return on one line what an error says, or else its cause."""
    said = str(error).replace(UNTOLD, "")
    if not said.strip() and error.__cause__ is not None:
        return _reason(error.__cause__)
    return shorten(said, LONGEST) or type(error).__name__
