"""N-grams of a tokenizer's tokens as tokens of their own: in the tokenizer's file, or after it.

Either way ``ngrams.expand(extended(text)) == base(text)`` for every text.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from toolkit.adaptivocab.ngrams import NGrams
from toolkit.adaptivocab.patterns import (
    BROKEN,
    InexpressibleError,
    Pattern,
    find_pattern,
    may_hold_digit,
)
from toolkit.adaptivocab.wrapper import NGramTokenizer
from toolkit.errors import MisfitError
from toolkit.files import write_json

CONFIG = "tokenizer_config.json"
NAMED = 3  # n-grams an error names
PROBED = 1000  # n-grams verified at a time
# What is put before and behind every n-gram to see that the extended tokenizer is exact.
_MARKS = ("a", "7", " ", ".", "\n", "\u0301", "  ", "'", "\u200d\U0001f469")
BEFORE = ("", *_MARKS)
AFTER = (*_MARKS, *[" a", " 7", " .", "s", "ll", "'s", "\n\n  a", "\r\n", "\n ", " \n", "\t("], "")


class Expression:
    """How n-grams of a tokenizer's tokens become tokens.

    A tokenizer whose file can hold them is extended there: n-grams within a pre-token, or of a
    tokenizer that makes one pre-token of every text, are merges of the lowest priority, each of
    all pieces but the last with the last; n-grams of whole pre-tokens are kept whole by the
    pre-tokenizer. Any other is wrapped.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
        A tokenizer of the `tokenizers` library. It is not changed.

    Attributes
    ----------
    reason : str
        Why the tokenizer's file cannot hold n-grams; empty if it can.
    native : bool
        Whether the extended tokenizer is an ordinary ``tokenizer.json``.
    aligned : bool
        Whether an n-gram must lie in one pre-token or consist of whole ones.

    Raises
    ------
    MisfitError
        If the tokenizer is not one of the `tokenizers` library.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not tokenizer.is_fast:
            raise MisfitError(
                f"{type(tokenizer).__name__} is not a fast tokenizer: use one with a tokenizer.json"
            )
        self.tokenizer = tokenizer
        self._file: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
        self._file |= {"truncation": None, "padding": None}
        self._backend = Tokenizer.from_str(json.dumps(self._file))
        self._backend.encode_special_tokens = tokenizer.split_special_tokens
        self._vocab = self._backend.get_vocab(with_added_tokens=True)
        self._model = self._backend.model
        self._token = {index: token for token, index in self._vocab.items()}
        mapped = json.dumps([self._file["pre_tokenizer"], self._file["decoder"]])
        self._byte = _byte_alphabet() if '"ByteLevel"' in mapped else None
        self._barred = self._find_barred()
        self.pattern: Pattern | None = None
        self.reason = ""
        try:
            self.pattern = self._find_pattern()
        except InexpressibleError as error:
            self.reason = str(error)

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Expression:
        return cls(tokenizer)

    @property
    def native(self) -> bool:
        return not self.reason

    @property
    def aligned(self) -> bool:
        return self.pattern is not None

    def segment(self, text: str) -> tuple[list[int], list[int]]:
        """Return the base ids of `text` without those put around it, and each one's pre-token."""
        encoding = self._backend.encode(text, add_special_tokens=False)
        return encoding.ids, [0 if word is None else word for word in encoding.word_ids]

    def admissible(self, pieces: Sequence[int], crosses: bool) -> bool:
        """Return whether an n-gram may become a token.

        Parameters
        ----------
        pieces : sequence of int
            Base ids, two or more.
        crosses : bool
            Whether they are of several pre-tokens; then they must be all of them.
        """
        if len(pieces) < 2 or any(piece in self._barred for piece in pieces):
            return False
        if any(piece not in self._token for piece in pieces):
            return False
        surface = self._surface(pieces)
        if surface in self._vocab or may_hold_digit(self._text(surface)):
            return False
        if not self.aligned:
            return True
        words = self._words(surface)
        if words is None:
            return not crosses
        return (len(words) > 1) == crosses and self._encode(words) == list(pieces)

    def build(self, ngrams: NGrams) -> PreTrainedTokenizerBase:
        """Return the tokenizer with the n-grams as tokens.

        Raises
        ------
        MisfitError
            If `ngrams` begins within the base vocabulary, holds an n-gram that may not become a
            token, the same text twice, or (native, not of whole pre-tokens) an n-gram without the
            one of all its pieces but the last; or if the result is not exact.
        """
        surfaces = self._checked_surfaces(ngrams)
        if not self.native:
            settings = {"ngram_base_size": ngrams.base_size, "ngram_pieces": ngrams.pieces}
            return self._assembled(NGramTokenizer, self._file, settings)
        file = self._extended_file(ngrams, surfaces)
        self._verify(Tokenizer.from_str(json.dumps(file)), ngrams, surfaces)
        return self._assembled(PreTrainedTokenizerFast, file, {})

    def _checked_surfaces(self, ngrams: NGrams) -> list[str]:
        """Return the n-grams' token strings, which differ from each other and from the base's."""
        if ngrams.base_size <= max(self._token):
            raise MisfitError(
                f"n-grams begin at id {ngrams.base_size} and the tokenizer's ids end at "
                f"{max(self._token)}: begin behind them"
            )
        known = set(ngrams.pieces)
        owners: dict[str, tuple[int, ...]] = {}
        refused = []
        for pieces in ngrams.pieces:
            within = self.admissible(pieces, crosses=False)
            if not within and not self.admissible(pieces, crosses=True):
                refused.append((pieces, "may not become a token"))
                continue
            surface = self._surface(pieces)
            if surface in owners:
                refused.append((pieces, f"is the same text as {owners[surface]}"))
            elif self.native and within and len(pieces) > 2 and pieces[:-1] not in known:
                refused.append((pieces, f"needs the n-gram {pieces[:-1]}, which is not there"))
            owners.setdefault(surface, pieces)
        if refused:
            reasons = [f"{pieces} ({self._name(pieces)}) {reason}" for pieces, reason in refused]
            raise MisfitError(_list(reasons, "n-grams that cannot be added"))
        return list(owners)

    def _extended_file(self, ngrams: NGrams, surfaces: list[str]) -> dict[str, Any]:
        """Return what is to be in ``tokenizer.json``."""
        model = {**self._file["model"]}
        # A token outside the model's vocabulary gets the first free id at loading, whatever its
        # id in the file; and ids that nobody has would be given to tokens added later.
        vocab = {**self._vocab}
        vocab |= {
            f"<|unused {index}|>": index
            for index in range(ngrams.base_size)
            if index not in self._token
        }
        vocab |= {surface: ngrams.base_size + number for number, surface in enumerate(surfaces)}
        merges, phrases = [*model["merges"]], {}
        for pieces, surface in zip(ngrams.pieces, surfaces, strict=True):
            words = self._words(surface) if self.aligned else [surface]
            if words is not None and len(words) > 1:
                phrases[self._text(surface)] = self._text(words[-1])
            else:
                merges.append([self._surface(pieces[:-1]), self._token[pieces[-1]]])
        file = {**self._file, "model": {**model, "vocab": vocab, "merges": merges}}
        if self.pattern is not None:
            file["model"]["ignore_merges"] = True
            file["pre_tokenizer"] = self.pattern.pre_tokenizer(phrases)
        return file

    def _verify(self, extended: Tokenizer, ngrams: NGrams, surfaces: list[str]) -> None:
        """Compare the ids of all tokens, and of every n-gram between many kinds of text."""
        extended.encode_special_tokens = self._backend.encode_special_tokens
        ids = {surface: ngrams.base_size + number for number, surface in enumerate(surfaces)}
        moved = [t for t, index in (self._vocab | ids).items() if extended.token_to_id(t) != index]
        if moved:
            raise MisfitError(_list(moved, "tokens that change their ids when n-grams are added"))
        texts = [
            self._backend.decode(pieces, skip_special_tokens=False) for pieces in ngrams.pieces
        ]
        probes = ["|".join(b + text + a for b, a in zip(cycle(BEFORE), AFTER)) for text in texts]
        wrong = []
        for start in range(0, len(probes), PROBED):
            part = probes[start : start + PROBED]
            ours = extended.encode_batch_fast(part, add_special_tokens=False)
            theirs = self._backend.encode_batch_fast(part, add_special_tokens=False)
            for number, (our, their) in enumerate(zip(ours, theirs, strict=True), start):
                if ngrams.expand(our.ids) != their.ids:
                    wrong.append(f"{ngrams.pieces[number]} ({texts[number]!r})")
        if wrong:
            raise MisfitError(_list(wrong, "n-grams that change the base tokens around them"))

    def _assembled(
        self, kind: type[PreTrainedTokenizerFast], file: dict[str, Any], settings: dict[str, Any]
    ) -> PreTrainedTokenizerBase:
        """Return a tokenizer of `file` with everything else as the base has it."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            self.tokenizer.save_pretrained(folder)
            config = json.loads((folder / CONFIG).read_text("utf-8"))
            config.pop("auto_map", None)
            write_json(folder / CONFIG, {**config, **settings, "tokenizer_class": kind.__name__})
            write_json(folder / "tokenizer.json", file)
            extended = kind.from_pretrained(folder)
        extended.name_or_path = self.tokenizer.name_or_path
        return extended

    def _find_barred(self) -> set[int | None]:
        """Return the ids of tokens that are no text, or not one of their own."""
        model = self._file["model"]
        barred = {token["id"] for token in self._file["added_tokens"]}
        barred |= {self._vocab.get(model.get("unk_token")), model.get("unk_id")}
        barred.add(self.tokenizer.unk_token_id)
        if model.get("byte_fallback"):
            fallback = (t for t in self._vocab if re.fullmatch("<0x[0-9A-F]{2}>", t))
            barred |= {self._vocab[token] for token in fallback}
        return barred

    def _find_pattern(self) -> Pattern | None:
        model = self._file["model"]
        if model["type"] != "BPE":
            raise InexpressibleError(f"its model is {model['type']}, not BPE")
        for setting in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
            if model[setting]:
                raise InexpressibleError(f"its model sets {setting}")
        pattern = find_pattern(self._file["pre_tokenizer"], self._file["normalizer"])
        if pattern is None:
            single = [t for t in self._vocab if len(t) == 1 and t not in model["vocab"]]
            if model["ignore_merges"] or single:
                raise InexpressibleError("its model sets ignore_merges, or a character is added")
            return None
        for token, index in self._vocab.items():
            if self._encode([token]) != [index] and len(self._words(token) or ()) == 1:
                raise InexpressibleError(f"its token {token!r} is not made by its merges")
        return pattern

    def _surface(self, pieces: Iterable[int]) -> str:
        return "".join(self._token[piece] for piece in pieces)

    def _text(self, surface: str) -> str:
        """Return the text of a token string; bytes that are no UTF-8 as lone surrogates."""
        if self._byte is None:
            return surface
        encoded = b"".join(self._byte.get(mark, mark.encode()) for mark in surface)
        return encoded.decode("utf-8", "surrogateescape")

    def _words(self, surface: str) -> list[str] | None:
        """Return the pre-tokens of a token string standing alone; None if it is not UTF-8."""
        text = self._text(surface)
        if re.search(BROKEN, text):
            return None
        return [word for word, _ in self._backend.pre_tokenizer.pre_tokenize_str(text)]

    def _encode(self, words: Iterable[str]) -> list[int]:
        return [token.id for word in words for token in self._model.tokenize(word)]

    def _name(self, pieces: Sequence[int]) -> str:
        return repr(self._backend.decode(pieces, skip_special_tokens=False))


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load an extended tokenizer of either kind."""
    config = json.loads((folder / CONFIG).read_text("utf-8"))
    wrapped = config["tokenizer_class"] == NGramTokenizer.__name__
    return (NGramTokenizer if wrapped else AutoTokenizer).from_pretrained(folder)


def _list(items: list[str], what: str) -> str:
    more = f" and {len(items) - NAMED} more" if len(items) > NAMED else ""
    return f"{len(items)} {what}: {'; '.join(items[:NAMED])}{more}"


def _byte_alphabet() -> dict[str, bytes]:
    """Return the bytes that the characters of byte-level token strings stand for."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): bytes([byte]) for byte in printable}
    return alphabet | {chr(256 + n): bytes([byte]) for n, byte in enumerate(others)}
