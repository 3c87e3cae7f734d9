"""Text: documents without exact duplicates, divided by document into three splits."""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from trimtab.config import CorpusConfig, FilesCorpus, HubCorpus, PythonDocs
from trimtab.errors import ConfigError, TrimtabError
from trimtab.files import sha256_of_json
from trimtab.progress import say, waiting


class Split(StrEnum):
    """What a document may be used for."""

    calibration = "calibration"
    validation = "validation"
    test = "test"


@dataclass(frozen=True)
class Document:
    """One text, and where it came from."""

    name: str
    text: str

    @property
    def digest(self) -> str:
        """SHA-256 of the text alone: the same text is the same document anywhere."""
        return hashlib.sha256(self.text.encode("utf-8", "surrogatepass")).hexdigest()


class Corpus:
    """Documents in three disjoint splits.

    A document's split depends on its own text only: adding documents moves none of the
    others. Exact duplicates are dropped, so no text stands in two splits. Within a split the
    documents are in the order of their hashes, which is a fixed shuffle.

    Parameters
    ----------
    name : str
    documents : iterable of Document
    calibration, validation : float
        Shares of the documents; the rest is the test split.
    """

    def __init__(
        self, name: str, documents: Iterable[Document], calibration: float, validation: float
    ) -> None:
        self.name = name
        self.splits: dict[Split, list[Document]] = {split: [] for split in Split}
        unique = {document.digest: document for document in documents if document.text.strip()}
        for digest, document in sorted(unique.items()):
            position = int(digest[:16], 16) / 16**16
            if position < calibration:
                split = Split.calibration
            elif position < calibration + validation:
                split = Split.validation
            else:
                split = Split.test
            self.splits[split].append(document)

    @property
    def digest(self) -> str:
        """SHA-256 over which text is in which split, 64 hexadecimal digits."""
        return sha256_of_json(self.document_digests())

    def document_digests(self) -> dict[str, list[str]]:
        """Return the digests of the documents of each split."""
        return {
            str(split): [document.digest for document in documents]
            for split, documents in self.splits.items()
        }

    def documents(self, split: Split) -> list[Document]:
        """Return the documents of a split.

        Raises
        ------
        TrimtabError
            If the split is empty.
        """
        if not self.splits[split]:
            raise TrimtabError(
                f"the corpus {self.name} has no document in its {split} split: give it more "
                "documents, or change corpus.calibration and corpus.validation"
            )
        return self.splits[split]


def load_corpus(config: CorpusConfig) -> Corpus:
    """Load the corpus that `config` describes.

    Raises
    ------
    ConfigError
        If nothing is found, or a file or dataset cannot be read.
    """
    if isinstance(config, PythonDocs):
        name, documents = "python-docs", _python_docs()
    elif isinstance(config, FilesCorpus):
        name, documents = config.glob, _files(config)
    elif isinstance(config, HubCorpus):
        name, documents = config.name, _hub(config)
    else:
        raise TypeError(f"no loader for {type(config).__name__}")
    corpus = Corpus(
        name, islice(documents, config.max_documents), config.calibration, config.validation
    )
    counts = ", ".join(f"{len(found)} {split}" for split, found in corpus.splits.items())
    if not any(corpus.splits.values()):
        raise TrimtabError(f"the corpus {name} holds no text")
    say(f"Corpus: {name} ({counts} documents)")
    return corpus


def token_windows(
    documents: Iterable[Document],
    tokenizer: PreTrainedTokenizerBase,
    count: int,
    length: int,
    *,
    fewer: bool = False,
) -> Tensor:
    """Return `count` windows of `length` tokens, spread evenly over the documents' text.

    The documents are joined with the end-of-text token and cut without padding or overlap.

    Parameters
    ----------
    fewer : bool
        Return as many as there are where the text is too short.

    Returns
    -------
    Tensor
        int64 of shape [count, length].

    Raises
    ------
    TrimtabError
        If the text is too short.
    """
    separator = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    stream: list[int] = []
    for document in documents:
        stream += encode(tokenizer, document.text) + separator
    available = len(stream) // length
    count = min(count, available) if fewer else count
    if available < count:
        raise TrimtabError(
            f"{count} windows of {length} tokens are asked for and the text holds {available}: "
            "lower tokens or window, or use a larger corpus"
        )
    starts = [index * available // count * length for index in range(count)]
    windows = [stream[start : start + length] for start in starts]
    return torch.tensor(windows, dtype=torch.int64).reshape(count, length)


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the token ids of `text` alone, without special tokens."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def start_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the token that a text is read behind, if the tokenizer has one."""
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    assert start is None or isinstance(start, int)
    return start


def _python_docs() -> Iterator[Document]:
    from pydoc_data.topics import topics

    for name, text in topics.items():
        yield Document(name, text)


def _files(config: FilesCorpus) -> Iterator[Document]:
    pattern = str(Path(config.glob).expanduser())
    paths = [Path(path) for path in sorted(glob.glob(pattern, recursive=True))]
    paths = [path for path in paths if path.is_file()]
    if not paths:
        raise ConfigError("corpus.glob", config.glob, "no file matches")
    for path in paths:
        if path.suffix == ".jsonl":
            yield from _json_lines(path, config.text_field)
        elif path.suffix in (".txt", ".md"):
            yield Document(str(path), _read(path))
        else:
            raise ConfigError("corpus.glob", config.glob, f"{path} is none of .txt, .md and .jsonl")


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TrimtabError(f"{path} cannot be read as UTF-8 text: {error}") from error


def _json_lines(path: Path, field: str) -> Iterator[Document]:
    for number, line in enumerate(_read(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record: Any = json.loads(line)
        except json.JSONDecodeError as error:
            raise TrimtabError(f"{path}, line {number}: not JSON: {error}") from error
        yield Document(f"{path}:{number}", _text_of(record, field, f"{path}, line {number}"))


def _text_of(record: Any, field: str, place: str) -> str:
    if not isinstance(record, dict) or not isinstance(record.get(field), str):
        fields = ", ".join(record) if isinstance(record, dict) else type(record).__name__
        raise TrimtabError(
            f"{place}: no text in the field {field!r} (found: {fields}); set corpus.text_field"
        )
    return str(record[field])


def _hub(config: HubCorpus) -> Iterator[Document]:
    try:
        import datasets
    except ImportError as error:
        raise TrimtabError("corpus=hub needs the datasets package: pip install datasets") from error
    datasets.disable_progress_bars()
    try:
        with waiting(f"Loading the dataset {config.name}"):
            rows = datasets.load_dataset(
                config.name, config.subset, split=config.split, revision=config.revision
            )
    except Exception as error:  # datasets raises many unrelated types for "cannot be had"
        reason = str(error).splitlines()[0]
        raise ConfigError("corpus.name", config.name, f"cannot be loaded: {reason}") from error
    for number, row in enumerate(rows):
        yield Document(
            f"{config.name}:{number}", _text_of(row, config.text_field, f"{config.name}[{number}]")
        )
