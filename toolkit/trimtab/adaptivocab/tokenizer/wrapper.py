"""N-grams on top of any fast tokenizer, where its own file cannot express them."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any

from transformers import BatchEncoding, PreTrainedTokenizerFast
from transformers.tokenization_utils_base import TruncationStrategy
from transformers.utils import PaddingStrategy

from trimtab.adaptivocab.ngrams import Matcher, NGrams
from trimtab.errors import MisfitError

Row = dict[str, list[Any]]
RETURNED = {
    "token_type_ids": "return_token_type_ids",
    "attention_mask": "return_attention_mask",
    "special_tokens_mask": "return_special_tokens_mask",
    "offset_mapping": "return_offsets_mapping",
}


class NGramTokenizer(PreTrainedTokenizerFast):
    """A tokenizer whose tokens are replaced by n-grams: the leftmost first, the longest there.

    It is the base tokenizer's file and the settings ``ngram_base_size`` and ``ngram_tokens``,
    which `from_pretrained` reads and `save_pretrained` writes. Padding, truncation and offsets are
    those of the tokens returned. Pairs of texts, overflowing tokens and whatever needs the
    encodings of `tokenizers` itself (``word_ids()`` and the like) are not supported.

    Attributes
    ----------
    is_wrapper : bool
        True: `AutoTokenizer` cannot load it.
    """

    is_wrapper = True

    @cached_property
    def ngrams(self) -> NGrams:
        tokens = tuple(map(tuple, self.init_kwargs["ngram_tokens"]))
        return NGrams(self.init_kwargs["ngram_base_size"], tokens)

    @cached_property
    def matcher(self) -> Matcher:
        return Matcher(self.ngrams)

    @cached_property
    def _own_vocab(self) -> dict[str, int]:
        return {
            self._convert_id_to_token(index): index
            for index in range(self.ngrams.base_size, self.ngrams.size)
        }

    def _encode_plus(  # type: ignore[override]
        self,
        text: Any,
        text_pair: Any = None,
        padding_strategy: PaddingStrategy = PaddingStrategy.DO_NOT_PAD,
        truncation_strategy: TruncationStrategy = TruncationStrategy.DO_NOT_TRUNCATE,
        max_length: int | None = None,
        is_split_into_words: bool = False,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: Any = None,
        **settings: Any,
    ) -> BatchEncoding:
        sequence = (list, tuple)
        batched = isinstance(text, sequence)
        if is_split_into_words:
            batched = bool(text) and isinstance(text[0], sequence)
        texts = list(text) if batched else [text]
        if is_split_into_words and isinstance(text, str):
            raise TypeError("is_split_into_words=True: expected a list of words, not a str")
        pairs = not is_split_into_words and any(isinstance(one, sequence) for one in texts)
        if pairs or text_pair is not None:
            raise NotImplementedError(f"{type(self).__name__} takes single texts, not pairs")
        if truncation_strategy == TruncationStrategy.ONLY_SECOND:
            raise NotImplementedError(
                f"truncation='only_second': {type(self).__name__} takes single texts, which have "
                "no second one; use 'only_first'"
            )
        for setting in ("return_overflowing_tokens", "sanitize_control_tokens"):
            if settings.get(setting):
                raise NotImplementedError(f"{type(self).__name__} does not support {setting}")
        wanted = {key: settings.pop(setting, None) for key, setting in RETURNED.items()}
        length = settings.pop("return_length", False)
        encoded = super()._encode_plus(
            texts,
            is_split_into_words=is_split_into_words,
            return_token_type_ids=True,
            return_attention_mask=True,
            return_special_tokens_mask=True,
            return_offsets_mapping=True,
            **settings,
        )
        rows = [
            self._merged({key: values[number] for key, values in encoded.items()})
            for number in range(len(texts))
        ]
        if truncation_strategy != TruncationStrategy.DO_NOT_TRUNCATE and max_length is not None:
            rows = [self._truncated(row, max_length) for row in rows]
        if padding_strategy != PaddingStrategy.DO_NOT_PAD:
            side = padding_side or self.padding_side
            if side not in ("left", "right"):
                raise ValueError(f"padding_side={side!r}: expected left or right")
            to = max(len(row["input_ids"]) for row in rows)
            if padding_strategy == PaddingStrategy.MAX_LENGTH and max_length is not None:
                to = max_length
            to += -to % (pad_to_multiple_of or 1)
            rows = [self._padded(row, to, side) for row in rows]
        data: dict[str, Any] = {"input_ids": [row["input_ids"] for row in rows]}
        for key, value in wanted.items():
            if key in self.model_input_names if value is None else value:
                data[key] = [row[key] for row in rows]
        if length:
            data["length"] = [len(row["input_ids"]) for row in rows]
        if not batched and return_tensors is None:
            data = {key: values[0] for key, values in data.items()}
        return BatchEncoding(data, tensor_type=return_tensors)

    def _merged(self, row: Row) -> Row:
        found = self.matcher(row["input_ids"])
        merged = {key: [values[start] for start, _, _ in found] for key, values in row.items()}
        offsets = row["offset_mapping"]
        merged["offset_mapping"] = [
            (offsets[start][0], offsets[end - 1][1]) for start, end, _ in found
        ]
        merged["input_ids"] = [token for _, _, token in found]
        return merged

    def _truncated(self, row: Row, length: int) -> Row:
        """Return a row cut to `length` tokens, with all special ones around the text kept."""
        mask = row["special_tokens_mask"]
        body = [index for index, special in enumerate(mask) if not special]
        excess = min(max(len(mask) - length, 0), len(body))
        dropped = set(
            body[:excess] if self.truncation_side == "left" else body[len(body) - excess :]
        )
        kept = [index for index in range(len(mask)) if index not in dropped]
        return {key: [values[index] for index in kept] for key, values in row.items()}

    def _padded(self, row: Row, length: int, side: str) -> Row:
        count = max(length - len(row["input_ids"]), 0)
        filling = {
            "input_ids": self.pad_token_id,
            "token_type_ids": self.pad_token_type_id,
            "attention_mask": 0,
            "special_tokens_mask": 1,
            "offset_mapping": (0, 0),
        }
        padding = {key: [filling[key]] * count for key in row}
        if side == "left":
            return {key: padding[key] + values for key, values in row.items()}
        return {key: values + padding[key] for key, values in row.items()}

    def _decode(self, token_ids: Any, *args: Any, **settings: Any) -> str:
        if isinstance(token_ids, dict):
            token_ids = token_ids["input_ids"]
        ids = [token_ids] if isinstance(token_ids, int) else token_ids
        return str(super()._decode(self._expanded(ids), *args, **settings))

    def _expanded(self, ids: Iterable[int]) -> list[int]:
        """Return the base ids that ids stand for; ids of no token stay, as the base has no such."""
        rows = (
            [token] if token >= self.ngrams.size else self.ngrams.expand([token]) for token in ids
        )
        return [token for row in rows for token in row]

    def tokenize(
        self, text: str, pair: str | None = None, add_special_tokens: bool = False, **settings: Any
    ) -> list[str]:
        ids = self(text, pair, add_special_tokens=add_special_tokens, **settings)["input_ids"]
        return list(self.convert_ids_to_tokens(ids))

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        if isinstance(ids, int):
            return self._convert_id_to_token(ids)
        skipped = set(self.all_special_ids) if skip_special_tokens else set()
        return [self._convert_id_to_token(int(index)) for index in ids if int(index) not in skipped]

    def _convert_id_to_token(self, index: int) -> Any:
        ngram = self._expanded([index])
        tokens = [self.backend_tokenizer.id_to_token(token) for token in ngram]
        return tokens[0] if len(tokens) == 1 else "".join(map(str, tokens))

    def _convert_token_to_id_with_added_voc(self, token: str) -> Any:
        found = self._own_vocab.get(token)
        return super()._convert_token_to_id_with_added_voc(token) if found is None else found

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return str(self.decode(self.convert_tokens_to_ids(tokens)))

    def get_vocab(self) -> dict[str, int]:
        return {**super().get_vocab(), **self._own_vocab}

    @property
    def vocab_size(self) -> int:
        return self.ngrams.size

    def __len__(self) -> int:
        return self.ngrams.size

    def _add_tokens(self, new_tokens: list[Any], special_tokens: bool = False) -> int:
        added = int(super()._add_tokens(new_tokens, special_tokens=special_tokens))
        if self.backend_tokenizer.get_vocab_size() > self.ngrams.base_size:
            raise MisfitError(
                f"{', '.join(map(str, new_tokens))}: the ids after {self.ngrams.base_size - 1} are "
                "those of n-grams; add tokens to the base tokenizer and calibrate again"
            )
        return added
