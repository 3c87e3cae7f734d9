"""Held-out text to measure on, cut at bytes so that every tokenizer is given the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from transformers import PreTrainedTokenizerBase

from trimtab.config import GenerationConfig, QualityConfig
from trimtab.corpora import Document
from trimtab.errors import TrimtabError
from trimtab.windows import byte_windows, evenly, split_at_byte, token_offsets

T = TypeVar("T")

LONGEST_TOKEN = 32  # bytes of text cut per token wanted: more than tokens of prose take


@dataclass(frozen=True)
class Window:
    """A stretch of a document: `text` is scored, given the `context` before it."""

    document: str
    context: str
    text: str

    @property
    def scored_bytes(self) -> int:
        return len(self.text.encode())


@dataclass(frozen=True)
class Prompt:
    """A stretch of a document to start from, and the text that follows it there."""

    document: str
    text: str
    continuation: str


def quality_windows(documents: Sequence[Document], config: QualityConfig) -> list[Window]:
    """Return `config.windows` windows, spread evenly over the documents.

    Raises
    ------
    TrimtabError
        If the documents hold fewer.
    """
    found = list(windows_of(documents, config.window_bytes, config.context_bytes))
    lengths = f"quality.window_bytes={config.window_bytes}"
    return _all_of(found, config.windows, "quality.windows", lengths)


def prompts(
    documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase, config: GenerationConfig
) -> list[Prompt]:
    """Return `config.prompts` prompts, spread evenly over the documents.

    A continuation is the text of `config.new_tokens` tokens of the given tokenizer; another
    tokenizer may need more or fewer for the same text.

    Raises
    ------
    TrimtabError
        If the documents hold fewer, or the tokenizer cannot say where its tokens are.
    """
    if not tokenizer.is_fast:
        raise TrimtabError(
            f"{type(tokenizer).__name__} has no offsets: evaluation needs a fast tokenizer "
            "(a tokenizer.json beside the model)"
        )
    found = []
    for document in documents:
        size = config.prompt_bytes + config.new_tokens * LONGEST_TOKEN
        for piece in byte_windows(document.text, size):
            text, rest = split_at_byte(piece, config.prompt_bytes)
            offsets = token_offsets(tokenizer, rest)
            if len(offsets) >= config.new_tokens:
                continuation = rest[: offsets[config.new_tokens - 1][1]]
                found.append(Prompt(document.name, text, continuation))
    return _all_of(found, config.prompts, "generation.prompts", lengths_of(config))


def lengths_of(config: GenerationConfig) -> str:
    """Return what sets the lengths of `prompts`, as typed on the command line."""
    return (
        f"generation.prompt_bytes={config.prompt_bytes} generation.new_tokens={config.new_tokens}"
    )


def windows_of(documents: Sequence[Document], size: int, context_bytes: int) -> Iterator[Window]:
    """Yield the windows of `size` bytes that documents are cut into, of which some is context."""
    for document in documents:
        for piece in byte_windows(document.text, size):
            context, text = split_at_byte(piece, context_bytes)
            if text:
                yield Window(document.name, context, text)


def _all_of(found: list[T], count: int, key: str, lengths: str) -> list[T]:
    """Return `count` of what was found, or raise `TrimtabError` where it is not as many."""
    if not found:
        raise TrimtabError(
            f"{lengths}: no test document is long enough; lower it, or use longer documents"
        )
    if len(found) < count:
        raise TrimtabError(
            f"{key}={count}: the test documents hold only {len(found)} with {lengths}; lower "
            "either, or use a larger corpus"
        )
    return evenly(found, count)
