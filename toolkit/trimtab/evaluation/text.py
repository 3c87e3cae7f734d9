"""Held-out text to measure on, cut at bytes so that every tokenizer is given the same."""

from __future__ import annotations

import platform
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from transformers import PreTrainedTokenizerBase

from trimtab.config import GenerationConfig, QualityConfig
from trimtab.corpus import Document
from trimtab.errors import TrimtabError

T = TypeVar("T")

LONGEST_TOKEN = 32  # bytes of text cut per token wanted: more than tokens of prose take
LONGEST_CHARACTER = 4  # bytes: a cut before a character that straddles it loses fewer
CANARY = f"source files of the standard library of Python {platform.python_version()}"


@dataclass(frozen=True)
class Window:
    """A stretch of a document: `context` is read, `text` is scored."""

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
    found = list(_windows(documents, config.window_bytes, config.context_bytes))
    lengths = f"quality.window_bytes={config.window_bytes}"
    return _spread(found, config.windows, "quality.windows", lengths)


def compression_windows(documents: Sequence[Document], config: QualityConfig) -> list[Window]:
    """Return `config.compression_windows` windows of full size, or as many as there are."""
    size = config.compression_context_bytes + config.compression_bytes
    least = config.compression_bytes - LONGEST_CHARACTER
    windows = _windows(documents, size, config.compression_context_bytes)
    found = [window for window in windows if window.scored_bytes > least]
    return _spread(found, min(config.compression_windows, len(found)))


def marginal_windows(windows: list[Window], config: QualityConfig) -> list[Window]:
    """Return `config.marginal_windows` of the windows, or as many as there are."""
    return _spread(windows, min(config.marginal_windows, len(windows)))


def canary_windows(config: QualityConfig) -> list[Window]:
    """Return `config.out_of_domain_windows` windows of Python's own source, which every one ships.

    None where the running Python comes without it.
    """
    if config.out_of_domain_windows == 0:
        return []
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    documents = [Document(path.name, path.read_text("utf-8", "ignore")) for path in paths]
    found = list(_windows(documents, config.window_bytes, config.context_bytes))
    return _spread(found, min(config.out_of_domain_windows, len(found)))


def prompts(
    documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase, config: GenerationConfig
) -> list[Prompt]:
    """Return `config.prompts` prompts, spread evenly over the documents.

    A continuation is what the given tokenizer makes of `config.new_tokens` tokens; another
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
        for piece in _pieces(document.text, size):
            text, rest = _split(piece, config.prompt_bytes)
            encoded = tokenizer(rest, add_special_tokens=False, return_offsets_mapping=True)
            offsets = encoded["offset_mapping"]
            if len(offsets) >= config.new_tokens:
                continuation = rest[: offsets[config.new_tokens - 1][1]]
                found.append(Prompt(document.name, text, continuation))
    lengths = (
        f"generation.prompt_bytes={config.prompt_bytes} generation.new_tokens={config.new_tokens}"
    )
    return _spread(found, config.prompts, "generation.prompts", lengths)


def _windows(documents: Sequence[Document], size: int, context_bytes: int) -> Iterator[Window]:
    for document in documents:
        for piece in _pieces(document.text, size):
            context, text = _split(piece, context_bytes)
            if text:
                yield Window(document.name, context, text)


def _pieces(text: str, size: int) -> Iterator[str]:
    """Yield consecutive pieces of `size` bytes, cut before a character that straddles the end.

    What is left at the end counts where it is at least half a piece.
    """
    while text:
        piece, text = _split(text, size)
        if len(piece.encode()) >= size // 2:
            yield piece


def _split(text: str, size: int) -> tuple[str, str]:
    head = text.encode()[:size].decode(errors="ignore")
    return head, text[len(head) :]


def _spread(items: list[T], count: int, key: str = "", lengths: str = "") -> list[T]:
    if not items and count:
        raise TrimtabError(
            f"{lengths}: no test document is long enough; lower it, or use longer documents"
        )
    if len(items) < count:
        raise TrimtabError(
            f"{key}={count}: the test documents hold only {len(items)} with {lengths}; lower "
            "either, or use a larger corpus"
        )
    return [items[index * len(items) // count] for index in range(count)]
