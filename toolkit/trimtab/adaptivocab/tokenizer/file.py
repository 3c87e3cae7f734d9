"""The file of a fast tokenizer, and the same file with n-grams in it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from itertools import cycle
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from trimtab.adaptivocab.ngrams import NGrams
from trimtab.adaptivocab.tokenizer.patterns import BROKEN, InexpressibleError, Pattern, find_pattern
from trimtab.errors import MisfitError

NAMED = 3  # n-grams an error names
PROBED = 1000  # n-grams verified at a time
# What is put before and behind every n-gram to see that the extended tokenizer is exact.
_MARKS = ("a", "7", " ", ".", "\n", "\u0301", "  ", "'", "\u200d\U0001f469")
BEFORE = ("", *_MARKS)
AFTER = (*_MARKS, *[" a", " 7", " .", "s", "ll", "'s", "\n\n  a", "\r\n", "\n ", " \n", "\t("], "")


class TokenizerFile:
    """What is in ``tokenizer.json``.

    A *token string* is a token as its vocabulary has it, or several put together.

    Attributes
    ----------
    content : dict
        The file, without truncation and padding.
    backend : Tokenizer
        The tokenizer it describes.
    vocab : dict from str to int
        All token strings, added ones too.
    token : dict from int to str
        The token string of every id.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.content: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
        self.content |= {"truncation": None, "padding": None}
        self.backend = Tokenizer.from_str(json.dumps(self.content))
        self.backend.encode_special_tokens = tokenizer.split_special_tokens
        self.vocab: dict[str, int] = self.backend.get_vocab(with_added_tokens=True)
        self.token = {index: token for token, index in self.vocab.items()}
        mapped = json.dumps([self.content["pre_tokenizer"], self.content["decoder"]])
        self._byte = _byte_alphabet() if '"ByteLevel"' in mapped else None
        self._model = self.backend.model

    def surface(self, pieces: Iterable[int]) -> str:
        """Return the token string of tokens in a row."""
        return "".join(self.token[piece] for piece in pieces)

    def text(self, surface: str) -> str:
        """Return the text of a token string; bytes that are no UTF-8 as lone surrogates."""
        if self._byte is None:
            return surface
        encoded = b"".join(self._byte.get(mark, mark.encode()) for mark in surface)
        return encoded.decode("utf-8", "surrogateescape")

    def words(self, surface: str) -> list[str] | None:
        """Return the pre-tokens of a token string standing alone; None if it is not UTF-8."""
        text = self.text(surface)
        if re.search(BROKEN, text):
            return None
        return [word for word, _ in self.backend.pre_tokenizer.pre_tokenize_str(text)]

    def encode(self, words: Iterable[str]) -> list[int]:
        """Return the ids of pre-tokens, given as token strings."""
        return [token.id for word in words for token in self._model.tokenize(word)]

    def decode(self, pieces: Sequence[int]) -> str:
        return str(self.backend.decode(pieces, skip_special_tokens=False))

    def find_pattern(self) -> Pattern | None:
        """Return what makes its pre-tokens; None if it makes one of every text.

        Raises
        ------
        InexpressibleError
            If the file cannot hold n-grams.
        """
        model = self.content["model"]
        if model["type"] != "BPE":
            raise InexpressibleError(f"its model is {model['type']}, not BPE")
        for setting in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
            if model[setting]:
                raise InexpressibleError(f"its model sets {setting}")
        pattern = find_pattern(self.content["pre_tokenizer"], self.content["normalizer"])
        if pattern is None:
            single = [t for t in self.vocab if len(t) == 1 and t not in model["vocab"]]
            if model["ignore_merges"] or single:
                raise InexpressibleError("its model sets ignore_merges, or a character is added")
            return None
        for token, index in self.vocab.items():
            if self.encode([token]) != [index] and len(self.words(token) or ()) == 1:
                raise InexpressibleError(f"its token {token!r} is not made by its merges")
        return pattern

    def extended(
        self, pattern: Pattern | None, ngrams: NGrams, surfaces: Sequence[str]
    ) -> dict[str, Any]:
        """Return the file with n-grams in it.

        Parameters
        ----------
        pattern : Pattern or None
            From `find_pattern`.
        surfaces : sequence of str
            The n-grams' token strings.

        Raises
        ------
        MisfitError
            If it is not exact.
        """
        content = self._composed(pattern, ngrams, surfaces)
        extended = Tokenizer.from_str(json.dumps(content))
        extended.encode_special_tokens = self.backend.encode_special_tokens
        self._check_ids(extended, ngrams, surfaces)
        self._check_texts(extended, ngrams)
        return content

    def _composed(
        self, pattern: Pattern | None, ngrams: NGrams, surfaces: Sequence[str]
    ) -> dict[str, Any]:
        model = {**self.content["model"]}
        # A token outside the model's vocabulary gets the first free id at loading, whatever its
        # id in the file; and ids that nobody has would be given to tokens added later.
        vocab = {**self.vocab}
        vocab |= {
            f"<|unused {index}|>": index
            for index in range(ngrams.base_size)
            if index not in self.token
        }
        vocab |= {surface: ngrams.base_size + number for number, surface in enumerate(surfaces)}
        merges, phrases = [*model["merges"]], {}
        for pieces, surface in zip(ngrams.pieces, surfaces, strict=True):
            words = [surface] if pattern is None else self.words(surface)
            if words is not None and len(words) > 1:
                phrases[self.text(surface)] = self.text(words[-1])
            else:
                merges.append([self.surface(pieces[:-1]), self.token[pieces[-1]]])
        content = {**self.content, "model": {**model, "vocab": vocab, "merges": merges}}
        if pattern is not None:
            content["model"]["ignore_merges"] = True
            content["pre_tokenizer"] = pattern.pre_tokenizer(phrases)
        return content

    def _check_ids(self, extended: Tokenizer, ngrams: NGrams, surfaces: Sequence[str]) -> None:
        """Compare the ids of all tokens with what they should be."""
        ids = {surface: ngrams.base_size + number for number, surface in enumerate(surfaces)}
        moved = [t for t, index in (self.vocab | ids).items() if extended.token_to_id(t) != index]
        if moved:
            raise MisfitError(listed(moved, "tokens that change their ids when n-grams are added"))

    def _check_texts(self, extended: Tokenizer, ngrams: NGrams) -> None:
        """Compare the ids of every n-gram between many kinds of text."""
        texts = [self.decode(pieces) for pieces in ngrams.pieces]
        probes = ["|".join(b + text + a for b, a in zip(cycle(BEFORE), AFTER)) for text in texts]
        wrong = []
        for start in range(0, len(probes), PROBED):
            part = probes[start : start + PROBED]
            ours = extended.encode_batch_fast(part, add_special_tokens=False)
            theirs = self.backend.encode_batch_fast(part, add_special_tokens=False)
            for number, (our, their) in enumerate(zip(ours, theirs, strict=True), start):
                if ngrams.expand(our.ids) != their.ids:
                    wrong.append(f"{ngrams.pieces[number]} ({texts[number]!r})")
        if wrong:
            raise MisfitError(listed(wrong, "n-grams that change the base tokens around them"))


def listed(items: list[str], what: str) -> str:
    """Return how many items there are, and the first few."""
    more = f" and {len(items) - NAMED} more" if len(items) > NAMED else ""
    return f"{len(items)} {what}: {'; '.join(items[:NAMED])}{more}"


def _byte_alphabet() -> dict[str, bytes]:
    """Return the bytes that the characters of byte-level token strings stand for."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): bytes([byte]) for byte in printable}
    return alphabet | {chr(256 + n): bytes([byte]) for n, byte in enumerate(others)}
