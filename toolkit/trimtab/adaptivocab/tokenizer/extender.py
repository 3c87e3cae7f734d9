"""Adding n-grams to a tokenizer: in its file where that can express them, in a wrapper otherwise.

Either way ``ngrams.expand(extended(text)) == base(text)`` for every text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from trimtab.adaptivocab.ngrams import NGrams
from trimtab.adaptivocab.tokenizer.characters import may_hold_digit
from trimtab.adaptivocab.tokenizer.file import TokenizerFile, listed
from trimtab.adaptivocab.tokenizer.patterns import InexpressibleError, Pattern
from trimtab.adaptivocab.tokenizer.wrapper import NGramTokenizer
from trimtab.errors import MisfitError
from trimtab.files import temporary_folder, write_json

CONFIG = "tokenizer_config.json"
# What can be set on a tokenizer without changing the tokens of a text.
SETTINGS = (
    *PreTrainedTokenizerBase.SPECIAL_TOKENS_ATTRIBUTES,
    "padding_side",
    "truncation_side",
    "model_max_length",
    "model_input_names",
    "clean_up_tokenization_spaces",
    "split_special_tokens",
    "chat_template",
    "name_or_path",
)


class TokenizerExtender:
    """Makes n-grams of a tokenizer's tokens tokens of their own.

    A tokenizer whose file can express n-grams is extended there. N-grams within a pre-token, and
    all n-grams of a tokenizer that has one pre-token a text, become merges of the lowest priority,
    each of all its tokens but the last with the last. N-grams of whole pre-tokens are kept whole
    by the pre-tokenizer. Any other tokenizer is wrapped.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
        A tokenizer of the `tokenizers` library. It is not changed.

    Attributes
    ----------
    reason : str
        Why the tokenizer's file cannot express n-grams; empty if it can.
    expressible : bool
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
        self._file = TokenizerFile(tokenizer)
        self._excluded = self._find_excluded()
        self.pattern: Pattern | None = None
        self.reason = ""
        try:
            self.pattern = self._file.find_pattern()
        except InexpressibleError as error:
            self.reason = str(error)

    @property
    def expressible(self) -> bool:
        return not self.reason

    @property
    def aligned(self) -> bool:
        return self.pattern is not None

    def segment(self, text: str) -> tuple[list[int], list[int]]:
        """Return the base ids of `text`, without added ones, and the number of each's pre-token."""
        encoding = self._file.backend.encode(text, add_special_tokens=False)
        return encoding.ids, [0 if word is None else word for word in encoding.word_ids]

    def admissible(self, ngram: Sequence[int], crosses: bool) -> bool:
        """Return whether an n-gram may become a token.

        Parameters
        ----------
        ngram : sequence of int
            Base ids, two or more.
        crosses : bool
            Whether they are of several pre-tokens; then they must be all of them.
        """
        if len(ngram) < 2 or any(token in self._excluded for token in ngram):
            return False
        if any(token not in self._file.token for token in ngram):
            return False
        string = self._file.token_string(ngram)
        if string in self._file.vocab or may_hold_digit(self._file.text(string)):
            return False
        if not self.aligned:
            return True
        parts = self._file.pre_tokens(string)
        if parts is None:
            return not crosses
        return (len(parts) > 1) == crosses and self._file.encode(parts) == list(ngram)

    def build(self, ngrams: NGrams) -> PreTrainedTokenizerBase:
        """Return the tokenizer with the n-grams as tokens.

        Raises
        ------
        MisfitError
            If `ngrams` begins within the base vocabulary, holds an n-gram that may not become a
            token or the same text twice, or lacks the n-gram of all tokens but the last of one
            that becomes a merge; or if the result is not exact.
        """
        strings = self._checked_strings(ngrams)
        if not self.expressible:
            settings = {"ngram_base_size": ngrams.base_size, "ngram_tokens": ngrams.tokens}
            return self._assembled(NGramTokenizer, self._file.content, settings)
        content = self._file.extended(self.pattern, ngrams, strings)
        return self._assembled(PreTrainedTokenizerFast, content, {})

    def _checked_strings(self, ngrams: NGrams) -> list[str]:
        """Return the n-grams' token strings, which differ from each other and from the base's."""
        if ngrams.base_size <= max(self._file.token):
            raise MisfitError(
                f"n-grams begin at id {ngrams.base_size} and the tokenizer's ids end at "
                f"{max(self._file.token)}: begin after them"
            )
        known = set(ngrams.tokens)
        owners: dict[str, tuple[int, ...]] = {}
        refused = []
        for ngram in ngrams.tokens:
            within = self.admissible(ngram, crosses=False)
            if not within and not self.admissible(ngram, crosses=True):
                refused.append((ngram, "may not become a token"))
                continue
            string = self._file.token_string(ngram)
            if string in owners:
                refused.append((ngram, f"is the same text as {owners[string]}"))
            elif self.expressible and within and len(ngram) > 2 and ngram[:-1] not in known:
                refused.append((ngram, f"needs the n-gram {ngram[:-1]}, which is not there"))
            owners.setdefault(string, ngram)
        if refused:
            reasons = [
                f"{ngram} ({self._file.decode(ngram)!r}) {reason}" for ngram, reason in refused
            ]
            raise MisfitError(listed(reasons, "n-grams that cannot be added"))
        return list(owners)

    def _assembled(
        self,
        kind: type[PreTrainedTokenizerFast],
        content: dict[str, Any],
        settings: dict[str, Any],
    ) -> PreTrainedTokenizerBase:
        """Return a tokenizer of a file's content with everything else as the base has it."""
        with temporary_folder() as folder:
            self.tokenizer.save_pretrained(folder)
            config = json.loads((folder / CONFIG).read_text("utf-8"))
            config.pop("auto_map", None)
            write_json(folder / CONFIG, {**config, **settings, "tokenizer_class": kind.__name__})
            write_json(folder / "tokenizer.json", content)
            extended = kind.from_pretrained(folder)
        return with_settings_of(extended, self.tokenizer)

    def _find_excluded(self) -> set[int | None]:
        """Return the ids of tokens that have no text, or none of their own."""
        model = self._file.content["model"]
        excluded = {token["id"] for token in self._file.content["added_tokens"]}
        excluded |= {self._file.vocab.get(model.get("unk_token")), model.get("unk_id")}
        excluded.add(self.tokenizer.unk_token_id)
        if model.get("byte_fallback"):
            fallback = (t for t in self._file.vocab if re.fullmatch("<0x[0-9A-F]{2}>", t))
            excluded |= {self._file.vocab[token] for token in fallback}
        return excluded


def with_settings_of(
    extended: PreTrainedTokenizerBase, base: PreTrainedTokenizerBase
) -> PreTrainedTokenizerBase:
    """Return `extended`, made to pad, truncate and format chats as `base` is set to now.

    Saving keeps some of these settings as they were loaded, and others not at all.
    """
    for name in SETTINGS:
        setattr(extended, name, getattr(base, name))
    return extended


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load an extended tokenizer of either kind."""
    config = json.loads((folder / CONFIG).read_text("utf-8"))
    wrapped = config["tokenizer_class"] == NGramTokenizer.__name__
    return (NGramTokenizer if wrapped else AutoTokenizer).from_pretrained(folder)
