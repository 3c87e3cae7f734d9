"""Text: documents without duplicates, divided by document into three splits."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from enum import StrEnum
from itertools import islice

from transformers import PreTrainedTokenizerBase

from trimtab.arguments import is_listing, shown
from trimtab.corpora import CorpusSource, Document
from trimtab.errors import TrimtabError
from trimtab.files import sha256_of_json
from trimtab.progress import say
from trimtab.ranges import member_of

ENOUGH = 20  # documents, for each split to get some
HALF_CHARACTER = re.compile("[\ud800-\udfff]")


class Split(StrEnum):
    """What a document may be used for."""

    calibration = "calibration"
    validation = "validation"
    test = "test"


class Corpus:
    """Documents in three disjoint splits.

    A document's split depends on its own text only: adding documents moves none of the
    others. Of documents that differ in line ends, or in white space at the ends of lines and of
    the text, one is kept, so no text stands in two splits. Within a split the documents are
    in the order of their hashes, which is a fixed shuffle.

    Parameters
    ----------
    name : str
    documents : iterable of Document
    calibration, validation : float
        Shares of the documents; the rest is the test split.

    Attributes
    ----------
    copies, blank : int
        Documents that are left out: copies of others, and those that hold white space alone.

    Raises
    ------
    TrimtabError
        If a document is no `Document`, or holds half a character, a lone surrogate, which no
        encoding has; or the shares leave nothing to divide.
    """

    def __init__(
        self, name: str, documents: Iterable[Document], calibration: float, validation: float
    ) -> None:
        self.name = name
        self.splits: dict[Split, list[Document]] = {split: [] for split in Split}
        shares = calibration, validation
        numbers = all(isinstance(one, int | float) for one in shares)
        if not (numbers and min(shares) >= 0 and sum(shares) <= 1):  # or NaN
            raise TrimtabError(
                f"calibration={calibration!r} and validation={validation!r}: expected shares of "
                "the documents, at least 0 and together at most 1"
            )
        documents = list(documents)
        if others := [one for one in documents if not isinstance(one, Document)]:
            raise TrimtabError(f"documents holds {others[0]!r:.60}: expected Documents")
        texts = [document for document in documents if document.text.strip()]
        latest = sorted(texts, key=lambda document: document.digest, reverse=True)
        unique = {document.likeness: document for document in latest}
        self.copies, self.blank = len(texts) - len(unique), len(documents) - len(texts)
        for likeness, document in sorted(unique.items(), key=lambda item: item[1].digest):
            if half := HALF_CHARACTER.search(document.text):
                raise TrimtabError(
                    f"{document.name}: the character {half.start()} is a lone surrogate "
                    f"(\\u{ord(half[0]):04x}), which is no text: write the whole character, or "
                    "drop it"
                )
            position = int(likeness[:16], 16) / 16**16
            if position < calibration:
                split = Split.calibration
            elif position < calibration + validation:
                split = Split.validation
            else:
                split = Split.test
            self.splits[split].append(document)

    @classmethod
    def for_calibration(cls, texts: Iterable[str]) -> Corpus:
        """Return texts divided for a calibration: a fifth of them validate, none are for the test.

        The fixed shuffle decides which, so that there is validation text wherever there are two.
        """
        corpus = cls._of(texts, Split.calibration)
        documents = corpus.splits[Split.calibration]
        cut = len(documents) - max(len(documents) // 5, len(documents) > 1)
        corpus.splits[Split.calibration] = documents[:cut]
        corpus.splits[Split.validation] = documents[cut:]
        return corpus

    @classmethod
    def for_test(cls, texts: Iterable[str]) -> Corpus:
        """Return texts to measure on, all of them."""
        return cls._of(texts, Split.test)

    @classmethod
    def _of(cls, texts: Iterable[str], split: Split) -> Corpus:
        if not is_listing(texts):
            raise TrimtabError(
                f"texts={shown(texts)}: expected a list of texts, or a Corpus; of a table, give "
                "one column"
            )
        found = list(texts)
        if others := [text for text in found if not isinstance(text, str)]:
            raise TrimtabError(f"texts holds {shown(others[0])}: expected texts alone")
        documents = [Document(f"text {number}", text) for number, text in enumerate(found)]
        corpus = cls("texts", documents, 0, 0)
        corpus.splits[split] = corpus.splits.pop(Split.test)
        corpus.splits = {one: corpus.splits.get(one, []) for one in Split}
        if not corpus.splits[split]:
            raise TrimtabError("texts: there is no text in them")
        return corpus

    @property
    def digest(self) -> str:
        """SHA-256 over which text is in which split, 64 hexadecimal digits."""
        return sha256_of_json(self._of_each(lambda document: document.digest))

    def document_likenesses(self) -> dict[str, list[str]]:
        """Return what copies of the documents of each split share, see `Document.likeness`."""
        return self._of_each(lambda document: document.likeness)

    def _of_each(self, of: Callable[[Document], str]) -> dict[str, list[str]]:
        return {str(split): [*map(of, documents)] for split, documents in self.splits.items()}

    def documents(self, split: Split | str) -> list[Document]:
        """Return the documents of a split.

        Raises
        ------
        TrimtabError
            If the split is empty, or there is none of that name.
        """
        split = member_of(Split, split, "split")
        if not self.splits[split]:
            raise TrimtabError(
                f"the corpus {self.name} has no document in its {split} split: give it more "
                "documents, or change corpus.calibration and corpus.validation"
            )
        return self.splits[split]


def load_corpus(source: CorpusSource) -> Corpus:
    """Load the corpus that `source` describes.

    Raises
    ------
    ConfigError
        If nothing is found, or a file or dataset cannot be read.
    """
    name = source.title
    documents = islice(source.documents(), source.max_documents)
    corpus = Corpus(name, documents, source.calibration, source.validation)
    counts = ", ".join(f"{len(found)} {split}" for split, found in corpus.splits.items())
    if not any(corpus.splits.values()):
        raise TrimtabError(f"the corpus {name} holds no text")
    left_out = {"copies of others": corpus.copies, "without text": corpus.blank}
    told = ", ".join(f"{what}: {count}" for what, count in left_out.items() if count)
    say(f"Corpus: {name} ({counts} documents{f'; left out, {told}' if told else ''})")
    if (found := sum(map(len, corpus.splits.values()))) < ENOUGH:
        say(f"Warning: {name} has {found} document{'s' * (found != 1)} to divide: a part may hold "
            f"too little text, or none; give {ENOUGH} or more")  # fmt: skip
    return corpus


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the token ids of `text` alone, without special tokens."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def start_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the token that comes before every text, if the tokenizer has one."""
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    assert start is None or isinstance(start, int)
    return start


def with_start(tokenizer: PreTrainedTokenizerBase, tokens: list[int]) -> list[int]:
    """Return tokens after the one that texts start with, if the tokenizer has one."""
    start = start_token(tokenizer)
    return tokens if start is None else after([start], tokens)


def without_start(tokenizer: PreTrainedTokenizerBase, tokens: list[int]) -> list[int]:
    """Return the tokens of a text without the start token that it may itself begin with."""
    return tokens[1:] if tokens and tokens[0] == start_token(tokenizer) else tokens


def after(opening: list[int], tokens: list[int]) -> list[int]:
    """Return tokens after those that open a text, which it may begin with already.

    What a chat template makes does.
    """
    return tokens if tokens[: len(opening)] == opening else opening + tokens
