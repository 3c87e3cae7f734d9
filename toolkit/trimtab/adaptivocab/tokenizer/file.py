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
from trimtab.adaptivocab.tokenizer.characters import BROKEN
from trimtab.adaptivocab.tokenizer.patterns import InexpressibleError, Pattern, find_pattern
from trimtab.errors import MisfitError

NAMED = 3  # n-grams that an error names
PROBED = 1000  # n-grams verified at a time
# What is put before and after every n-gram to verify that the extended tokenizer is exact.
_MARKS = ("a", "7", " ", ".", "\n", "\u0301", "  ", "'", "\u200d\U0001f469")
BEFORE = ("", *_MARKS)
AFTER = (*_MARKS, *[" a", " 7", " .", "s", "ll", "'s", "\n\n  a", "\r\n", "\n ", " \n", "\t("], "")


class TokenizerFile:
    """What is in ``tokenizer.json``.

    A *token string* is a token as its vocabulary has it, or several of them joined.

    Attributes
    ----------
    content : dict
        The file, without truncation and padding.
    backend : Tokenizer
        The tokenizer it describes.
    vocab : dict from str to int
        The id of every token string, of added ones too.
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

    def token_string(self, tokens: Iterable[int]) -> str:
        """Return the token string of several tokens."""
        return "".join(self.token[token] for token in tokens)

    def text(self, string: str) -> str:
        """Return the text of a token string; bytes that are not UTF-8 as lone surrogates."""
        if self._byte is None:
            return string
        encoded = b"".join(self._byte.get(mark, mark.encode()) for mark in string)
        return encoded.decode("utf-8", "surrogateescape")

    def pre_tokens(self, string: str) -> list[str] | None:
        """Return the pre-tokens of a token string by itself; None if it is not UTF-8."""
        text = self.text(string)
        if re.search(BROKEN, text):
            return None
        return [part for part, _ in self.backend.pre_tokenizer.pre_tokenize_str(text)]

    def encode(self, pre_tokens: Iterable[str]) -> list[int]:
        """Return the ids of pre-tokens, given as token strings."""
        return [token.id for part in pre_tokens for token in self._model.tokenize(part)]

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self.backend.decode(tokens, skip_special_tokens=False))

    def find_pattern(self) -> Pattern | None:
        """Return what makes its pre-tokens; None if every text is a single one.

        Raises
        ------
        InexpressibleError
            If the file cannot express n-grams.
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
            if self.encode([token]) != [index] and len(self.pre_tokens(token) or ()) == 1:
                raise InexpressibleError(f"its token {token!r} is not made by its merges")
        return pattern

    def extended(
        self, pattern: Pattern | None, ngrams: NGrams, strings: Sequence[str]
    ) -> dict[str, Any]:
        """Return the file with n-grams in it.

        Parameters
        ----------
        pattern : Pattern or None
            From `find_pattern`.
        strings : sequence of str
            The n-grams' token strings.

        Raises
        ------
        MisfitError
            If it is not exact.
        """
        content = self._composed(pattern, ngrams, strings)
        extended = Tokenizer.from_str(json.dumps(content))
        extended.encode_special_tokens = self.backend.encode_special_tokens
        self._check_ids(extended, ngrams, strings)
        self._check_texts(extended, ngrams)
        return content

    def _composed(
        self, pattern: Pattern | None, ngrams: NGrams, strings: Sequence[str]
    ) -> dict[str, Any]:
        model = {**self.content["model"]}
        # A token outside the model's vocabulary gets the first free id at loading, whatever its
        # id in the file; and ids without a token would be given to tokens added later.
        vocab = {**self.vocab}
        vocab |= {
            f"<|unused {index}|>": index
            for index in range(ngrams.base_size)
            if index not in self.token
        }
        vocab |= {string: ngrams.base_size + number for number, string in enumerate(strings)}
        merges, phrases = [*model["merges"]], {}
        for ngram, string in zip(ngrams.tokens, strings, strict=True):
            parts = [string] if pattern is None else self.pre_tokens(string)
            if parts is not None and len(parts) > 1:
                phrases[self.text(string)] = self.text(parts[-1])
            else:
                merges.append([self.token_string(ngram[:-1]), self.token[ngram[-1]]])
        content = {**self.content, "model": {**model, "vocab": vocab, "merges": merges}}
        if pattern is not None:
            content["model"]["ignore_merges"] = True
            content["pre_tokenizer"] = pattern.pre_tokenizer(phrases)
        return content

    def _check_ids(self, extended: Tokenizer, ngrams: NGrams, strings: Sequence[str]) -> None:
        """Compare the ids of all tokens with what they should be."""
        ids = {string: ngrams.base_size + number for number, string in enumerate(strings)}
        moved = [t for t, index in (self.vocab | ids).items() if extended.token_to_id(t) != index]
        if moved:
            raise MisfitError(listed(moved, "tokens that change their ids when n-grams are added"))

    def _check_texts(self, extended: Tokenizer, ngrams: NGrams) -> None:
        """Compare the base tokens of every n-gram between many kinds of text."""
        texts = [self.decode(ngram) for ngram in ngrams.tokens]
        probes = ["|".join(b + text + a for b, a in zip(cycle(BEFORE), AFTER)) for text in texts]
        wrong = []
        for start in range(0, len(probes), PROBED):
            part = probes[start : start + PROBED]
            ours = extended.encode_batch_fast(part, add_special_tokens=False)
            theirs = self.backend.encode_batch_fast(part, add_special_tokens=False)
            for number, (our, their) in enumerate(zip(ours, theirs, strict=True), start):
                if ngrams.expand(our.ids) != their.ids:
                    wrong.append(f"{ngrams.tokens[number]} ({texts[number]!r})")
        if wrong:
            raise MisfitError(listed(wrong, "n-grams that change the base tokens around them"))


def listed(items: list[str], what: str) -> str:
    """Return how many items there are, and the first few."""
    more = f" and {len(items) - NAMED} more" if len(items) > NAMED else ""
    return f"{len(items)} {what}: {'; '.join(items[:NAMED])}{more}"


def _byte_alphabet() -> dict[str, bytes]:
    """Return the byte of every character in byte-level token strings."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): bytes([byte]) for byte in printable}
    return alphabet | {chr(256 + n): bytes([byte]) for n, byte in enumerate(others)}
