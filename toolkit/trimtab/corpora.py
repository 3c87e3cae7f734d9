"""Where text comes from: one class for each option of the configuration group ``corpus``."""

from __future__ import annotations

import glob
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from trimtab import hub_texts
from trimtab.errors import ConfigError, as_text
from trimtab.globbing import literal, matching, once
from trimtab.settings import Settings, path_of, setting, settings
from trimtab.text_files import BYTE_ORDER_MARK, json_lines, read_text

RECORDS = ".jsonl"
KINDS = (".txt", ".md", RECORDS)
TEXT_FIELD = "text"


@dataclass(frozen=True)
class Document:
    """One text, and where it came from.

    A byte-order mark says how a file was encoded and is no part of the text, neither at its
    beginning nor where files were put together.
    """

    name: str
    text: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", as_text(self.name))
        object.__setattr__(self, "text", self.text.replace(BYTE_ORDER_MARK, ""))

    @property
    def digest(self) -> str:
        """SHA-256 of the text alone: the same text is the same document anywhere."""
        return _sha256(self.text)

    @property
    def likeness(self) -> str:
        """SHA-256 of the text with Unix line ends, and no white space at their or the text's ends.

        Copies that another editor or system saved are alike.
        """
        lines = self.text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        return _sha256("\n".join(line.rstrip() for line in lines).strip() + "\n")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@settings
class CorpusSource(Settings, ABC):
    """What every source of text has in common: documents, divided by a hash of their text."""

    place: ClassVar[str] = "corpus"

    calibration: float = setting(
        default=0.7, meaning="share of the documents that methods are calibrated on",
        above=0, below=1,
    )  # fmt: skip
    validation: float = setting(
        default=0.1, meaning="share that they may tune on; the rest, at least some, is the test",
        above=0, below=1,
    )  # fmt: skip
    max_documents: int | None = setting(
        default=None, meaning="use only the first so many documents", at_least=1, unit="documents"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(
            self.calibration + self.validation < 1,
            "validation",
            "less than 1 - corpus.calibration, so that documents remain for the test",
        )

    @property
    @abstractmethod
    def title(self) -> str:
        """What reports call the corpus."""

    @abstractmethod
    def documents(self) -> Iterator[Document]:
        """Yield the documents.

        Raises
        ------
        ConfigError
            If nothing is found, or a dataset cannot be had.
        TrimtabError
            If a file cannot be read.
        """


@settings
class PythonDocs(CorpusSource):
    """The help topics of the running Python (pydoc_data.topics): 0.46 MB of prose about Python."""

    @property
    def title(self) -> str:
        return "python-docs"

    def documents(self) -> Iterator[Document]:
        from pydoc_data.topics import topics

        for name, text in topics.items():
            yield Document(name, text)


@settings
class FilesCorpus(CorpusSource):
    """Your own text: .txt and .md files are one document each, .jsonl files one a line."""

    glob: str = setting(
        meaning="which files, such as '/texts/**/*.md' (quote it), or a folder for all below it"
    )
    text_field: str = setting(
        default=TEXT_FIELD, meaning="the field of a .jsonl line that holds the text"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not any(path.is_file() for path in self._matching()):
            self._paths()  # says why

    @property
    def title(self) -> str:
        return self.glob

    def documents(self) -> Iterator[Document]:
        for path in self._paths():
            if _of_records(path):
                for number, text in json_lines(path, self.text_field):
                    yield Document(f"{path}:{number}", text)
            else:
                yield Document(str(path), read_text(path))

    def _matching(self) -> Iterator[Path]:
        named = path_of(self.glob)
        if named.is_file():
            yield named
        elif named.is_dir():
            inside = matching(f"{glob.escape(str(named))}/**/*")
            yield from (path for path in inside if path.suffix.lower() in KINDS)
        else:
            yield from matching(str(named))

    def _paths(self) -> list[Path]:
        named = path_of(self.glob)
        found = sorted(self._matching(), key=str)
        if unreadable := [path for path in found if not path.is_file() and not path.is_dir()]:
            reason = "is no file, or a link to none: remove it, or name files without it"
            raise ConfigError("corpus.glob", self.glob, f"{unreadable[0]} {reason}")
        paths = once([path for path in found if path.is_file()])
        if not paths:
            folders = any(path.is_dir() for path in found)
            expected = "no file matches" + (", only folders: end it in /**/*.txt" * folders)
            if taken := literal(named):
                folder, write = taken
                expected += f"; brackets stand for one of their letters: for {folder} write {write}"
            if named.is_dir():
                expected = (
                    f"there is none of {', '.join(KINDS)} below it, hidden files and folders aside"
                )
            raise ConfigError("corpus.glob", self.glob, expected)
        for path in paths:
            if path.suffix.lower() not in KINDS:
                expected = f"{path} is none of {', '.join(KINDS[:-1])} and {KINDS[-1]}"
                raise ConfigError("corpus.glob", self.glob, expected)
        if self.text_field != TEXT_FIELD and not any(map(_of_records, paths)):
            expected = f"is of {RECORDS} files, of which there is none: leave it out"
            raise ConfigError("corpus.text_field", self.text_field, expected)
        return paths


def _of_records(path: Path) -> bool:
    return path.suffix.lower() == RECORDS


@settings
class HubCorpus(CorpusSource):
    """A dataset by hub name or from a local folder; needs the extra `datasets`."""

    name: str = setting(meaning="org/dataset, or /path/to/folder")
    subset: str | None = setting(default=None, meaning="configuration of the dataset")
    split: str = setting(default="train", meaning="split of the dataset")
    revision: str | None = setting(default=None, meaning="branch, tag or commit on the hub")
    text_field: str = setting(default=TEXT_FIELD, meaning="the column that holds the text")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.revision is not None and path_of(self.name).is_dir():
            expected = f"is of datasets on the hub, and {self.name} is a folder: leave it out"
            raise ConfigError("corpus.revision", self.revision, expected)

    @property
    def title(self) -> str:
        return self.name

    def documents(self) -> Iterator[Document]:
        rows = hub_texts.load(self.name, self.subset, self.split, self.revision)
        for number, text in hub_texts.texts(rows, self.text_field, self.name):
            yield Document(f"{self.name}:{number}", text)
