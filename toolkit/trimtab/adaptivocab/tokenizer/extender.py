"""N-grams of a tokenizer's tokens as tokens of their own: in the tokenizer's file, or after it.

Either way ``ngrams.expand(extended(text)) == base(text)`` for every text.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from trimtab.adaptivocab.ngrams import NGrams
from trimtab.adaptivocab.tokenizer.file import TokenizerFile, listed
from trimtab.adaptivocab.tokenizer.patterns import InexpressibleError, Pattern, may_hold_digit
from trimtab.adaptivocab.tokenizer.wrapper import NGramTokenizer
from trimtab.errors import MisfitError
from trimtab.files import write_json

CONFIG = "tokenizer_config.json"


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
        self._file = TokenizerFile(tokenizer)
        self._barred = self._find_barred()
        self.pattern: Pattern | None = None
        self.reason = ""
        try:
            self.pattern = self._file.find_pattern()
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
        encoding = self._file.backend.encode(text, add_special_tokens=False)
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
        if any(piece not in self._file.token for piece in pieces):
            return False
        surface = self._file.surface(pieces)
        if surface in self._file.vocab or may_hold_digit(self._file.text(surface)):
            return False
        if not self.aligned:
            return True
        words = self._file.words(surface)
        if words is None:
            return not crosses
        return (len(words) > 1) == crosses and self._file.encode(words) == list(pieces)

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
            return self._assembled(NGramTokenizer, self._file.content, settings)
        content = self._file.extended(self.pattern, ngrams, surfaces)
        return self._assembled(PreTrainedTokenizerFast, content, {})

    def _checked_surfaces(self, ngrams: NGrams) -> list[str]:
        """Return the n-grams' token strings, which differ from each other and from the base's."""
        if ngrams.base_size <= max(self._file.token):
            raise MisfitError(
                f"n-grams begin at id {ngrams.base_size} and the tokenizer's ids end at "
                f"{max(self._file.token)}: begin behind them"
            )
        known = set(ngrams.pieces)
        owners: dict[str, tuple[int, ...]] = {}
        refused = []
        for pieces in ngrams.pieces:
            within = self.admissible(pieces, crosses=False)
            if not within and not self.admissible(pieces, crosses=True):
                refused.append((pieces, "may not become a token"))
                continue
            surface = self._file.surface(pieces)
            if surface in owners:
                refused.append((pieces, f"is the same text as {owners[surface]}"))
            elif self.native and within and len(pieces) > 2 and pieces[:-1] not in known:
                refused.append((pieces, f"needs the n-gram {pieces[:-1]}, which is not there"))
            owners.setdefault(surface, pieces)
        if refused:
            reasons = [
                f"{pieces} ({self._file.decode(pieces)!r}) {reason}" for pieces, reason in refused
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
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            self.tokenizer.save_pretrained(folder)
            config = json.loads((folder / CONFIG).read_text("utf-8"))
            config.pop("auto_map", None)
            write_json(folder / CONFIG, {**config, **settings, "tokenizer_class": kind.__name__})
            write_json(folder / "tokenizer.json", content)
            extended = kind.from_pretrained(folder)
        extended.name_or_path = self.tokenizer.name_or_path
        return extended

    def _find_barred(self) -> set[int | None]:
        """Return the ids of tokens that are no text, or not one of their own."""
        model = self._file.content["model"]
        barred = {token["id"] for token in self._file.content["added_tokens"]}
        barred |= {self._file.vocab.get(model.get("unk_token")), model.get("unk_id")}
        barred.add(self.tokenizer.unk_token_id)
        if model.get("byte_fallback"):
            fallback = (t for t in self._file.vocab if re.fullmatch("<0x[0-9A-F]{2}>", t))
            barred |= {self._file.vocab[token] for token in fallback}
        return barred


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load an extended tokenizer of either kind."""
    config = json.loads((folder / CONFIG).read_text("utf-8"))
    wrapped = config["tokenizer_class"] == NGramTokenizer.__name__
    return (NGramTokenizer if wrapped else AutoTokenizer).from_pretrained(folder)
