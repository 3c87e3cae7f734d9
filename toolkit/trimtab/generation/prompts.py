"""Prompts as callers have them, as lists of token ids."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence, Set
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import BatchEncoding, PreTrainedTokenizerBase

from trimtab.arguments import is_listing, shown
from trimtab.corpus import after, encode
from trimtab.errors import TrimtabError

Prompt = str | Sequence[int]
Prompts = Sequence[Prompt] | BatchEncoding


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, prompts: Prompts) -> list[list[int]]:
    """Return the tokens of every prompt.

    Parameters
    ----------
    prompts : sequence of str or of sequence of int, or BatchEncoding
        Texts, token ids, or what a tokenizer makes of several texts: of that, without the padding.

    Raises
    ------
    TrimtabError
        If it is something else, a single prompt, or token ids with padding among them.
    """
    if isinstance(prompts, BatchEncoding):
        return _unpadded(prompts)
    if isinstance(prompts, str):
        raise TrimtabError(f"prompts={prompts!r}: expected several; put a single one in a list")
    if not is_listing(prompts):
        raise TrimtabError(
            f"prompts is a {type(prompts).__name__}: expected a list of texts or of lists of token "
            "ids, or the tokenizer's BatchEncoding of several texts; of a table, give one column"
        )
    rectangular = isinstance(prompts, Tensor | np.ndarray)
    prompts = list(prompts)
    ids = [token_ids(tokenizer, prompt) for prompt in prompts]
    given = [row for row, prompt in zip(ids, prompts, strict=True) if not isinstance(prompt, str)]
    _require_unpadded(tokenizer, given, rectangular=rectangular)
    return ids


def as_batch(ids: Sequence[Sequence[int]]) -> BatchEncoding:
    """Return the tokens of prompts, all of them text, in the form that says so."""
    masks = [[1] * len(row) for row in ids]
    return BatchEncoding({"input_ids": ids, "attention_mask": masks})


def token_ids(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """Return the tokens of a prompt, special ones included.

    A text that begins with what the tokenizer puts before texts, as a chat template makes it, does
    not get it twice.

    Raises
    ------
    TrimtabError
        If it is neither a text nor token ids.
    """
    if isinstance(prompt, str):
        try:
            prompt.encode()
        except UnicodeEncodeError as error:
            raise TrimtabError(f"prompt {prompt!r:.60}: no text, {error.reason}") from error
        ids: list[int] = tokenizer(prompt, verbose=False)["input_ids"]
        written = encode(tokenizer, prompt)
        for added in range(1, len(ids) - len(written) + 1):
            if ids[added : added + len(written)] == written:
                return after(ids[:added], ids[added:])
        return ids
    try:
        return whole_numbers(prompt)
    except TypeError as error:
        raise TrimtabError(f"prompt {shown(prompt)}: expected a text or token ids") from error


def whole_numbers(tokens: Iterable[int]) -> list[int]:
    """Return token ids, whatever holds them in an order.

    Raises
    ------
    TypeError
        If they are something else.
    """
    if not is_listing(tokens):
        raise TypeError
    found = list(tokens.tolist() if isinstance(tokens, Tensor | np.ndarray) else tokens)
    if any(isinstance(one, bool) or getattr(one, "dtype", None) == torch.bool for one in found):
        raise TypeError  # a mask
    return [operator.index(token) for token in found]


def stop_strings(stop: Iterable[str]) -> tuple[str, ...]:
    """Return stop strings, whatever holds them.

    Raises
    ------
    TrimtabError
        If it is a single one, or one of them is empty or no text.
    """
    several = is_listing(stop) or isinstance(stop, Set)
    found = tuple(stop) if several else ()
    if not several or not all(isinstance(one, str) and one for one in found):
        raise TrimtabError(f"stop={shown(stop)}: expected a sequence of strings, none empty")
    return found


def _require_unpadded(
    tokenizer: PreTrainedTokenizerBase, ids: list[list[int]], *, rectangular: bool
) -> None:
    """Refuse rows that begin or end with padding.

    A token that begins or ends texts as well is taken for padding where several rows are of one
    length: where a row has several at one end, and where some, not all, of the rows of one tensor
    have it there.
    """
    pad = tokenizer.pad_token_id
    if pad is None:
        return
    padded = [pad in (*row[:1], *row[-1:]) for row in ids]
    refused = any(padded)
    if pad in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        several = any([pad, pad] in (row[:2], row[-2:]) for row in ids)
        refused = several or (rectangular and refused and not all(padded))
        refused = refused and len(ids) > 1 and len(set(map(len, ids))) == 1
    if refused:
        raise TrimtabError(
            f"prompts hold the padding token {pad}: give the tokenizer's BatchEncoding, whose "
            "attention_mask tells it from the text, or lists without it"
        )


def _unpadded(batch: BatchEncoding) -> list[list[int]]:
    parts = batch.get("input_ids"), batch.get("attention_mask")
    if any(part is None for part in parts):
        raise TrimtabError(
            f"prompts is a BatchEncoding of {', '.join(batch) or 'nothing'}: expected input_ids, "
            "and an attention_mask, which tells tokens from padding"
        )
    ids, masks = (_lists(part) for part in parts)
    if any(isinstance(row, int) for row in ids):
        raise TrimtabError(
            "prompts is a BatchEncoding of one text: expected several; put a single one in a list "
            "before it is tokenized"
        )
    try:
        return [
            [operator.index(token) for token, kept in zip(row, mask, strict=True) if kept]
            for row, mask in zip(ids, masks, strict=True)
        ]
    except (TypeError, ValueError) as error:
        raise TrimtabError(
            "prompts: expected input_ids of integers and an attention_mask of the same shape"
        ) from error


def _lists(values: Any) -> list[Any]:
    found: list[Any] = values.tolist() if hasattr(values, "tolist") else list(values)
    return found
