"""Held-out text to measure on, cut at bytes so that every tokenizer is given the same."""

from __future__ import annotations

import platform
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trimtab.config import GenerationConfig, QualityConfig
from trimtab.corpus import Document, encode, start_token
from trimtab.errors import TrimtabError
from trimtab.models.facts import require_positions
from trimtab.windows import (
    LONGEST_CHARACTER,
    byte_windows,
    evenly,
    split_at_byte,
    token_offsets,
)

T = TypeVar("T")

LONGEST_TOKEN = 32  # bytes of text cut per token wanted: more than tokens of prose take
OUT_OF_DOMAIN = f"source files of the standard library of Python {platform.python_version()}"


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


@dataclass(frozen=True)
class Workload:
    """The text that every contender is measured on.

    Attributes
    ----------
    windows, prompts : list
        Held-out text.
    compression : list of Window
        Held-out text whose context is the prompt to be compressed.
    out_of_domain : list of Window
        Text of another domain.
    marginal_likelihood : list of Window
        Those of `compression` whose text is also scored over all its tokenizations.
    """

    windows: list[Window]
    prompts: list[Prompt]
    compression: list[Window] = field(default_factory=list)
    out_of_domain: list[Window] = field(default_factory=list)
    marginal_likelihood: list[Window] = field(default_factory=list)


def quality_windows(documents: Sequence[Document], config: QualityConfig) -> list[Window]:
    """Return `config.windows` windows, spread evenly over the documents.

    Raises
    ------
    TrimtabError
        If the documents hold fewer.
    """
    found = list(_windows(documents, config.window_bytes, config.context_bytes))
    lengths = f"quality.window_bytes={config.window_bytes}"
    return _all_of(found, config.windows, "quality.windows", lengths)


def compression_windows(documents: Sequence[Document], config: QualityConfig) -> list[Window]:
    """Return `config.compression_windows` windows of full size, or as many as there are."""
    size = config.compression_context_bytes + config.compression_bytes
    least = config.compression_bytes - LONGEST_CHARACTER
    windows = _windows(documents, size, config.compression_context_bytes)
    found = [window for window in windows if window.scored_bytes > least]
    return evenly(found, min(config.compression_windows, len(found)))


def marginal_likelihood_windows(windows: list[Window], config: QualityConfig) -> list[Window]:
    """Return `config.marginal_likelihood_windows` of the windows, or as many as there are."""
    return evenly(windows, min(config.marginal_likelihood_windows, len(windows)))


def out_of_domain_windows(config: QualityConfig) -> list[Window]:
    """Return `config.out_of_domain_windows` windows of Python's own source.

    Fewer where there are not as many: none, where the running Python comes without its source.
    """
    if config.out_of_domain_windows == 0:
        return []
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    documents = [Document(path.name, path.read_text("utf-8", "ignore")) for path in paths]
    found = list(_windows(documents, config.window_bytes, config.context_bytes))
    return evenly(found, min(config.out_of_domain_windows, len(found)))


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
    lengths = (
        f"generation.prompt_bytes={config.prompt_bytes} generation.new_tokens={config.new_tokens}"
    )
    return _all_of(found, config.prompts, "generation.prompts", lengths)


def require_room(
    work: Workload,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    quality: QualityConfig | None,
    generation: GenerationConfig,
    *,
    compressed: bool,
) -> None:
    """Refuse texts that are longer than the model has positions for.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
        The unmodified model's: others make fewer tokens of a text.
    quality : QualityConfig or None
        None where no text is scored.
    compressed : bool
        Whether compressed prompts are read too.

    Raises
    ------
    MisfitError
    """

    def longest(texts: Iterable[tuple[str, str]]) -> int:
        each = (sum(len(encode(tokenizer, part)) for part in text) for text in texts)
        return max(each, default=0) + (start_token(tokenizer) is not None)

    def require(texts: Iterable[tuple[str, str]], setting: str) -> None:
        require_positions(model.config, longest(texts), setting)

    if quality is not None:
        windows = (*work.windows, *work.out_of_domain)
        setting = f"quality.window_bytes={quality.window_bytes}"
        require(((one.context, one.text) for one in windows), setting)
    if quality is not None and compressed:
        setting = f"quality.compression_context_bytes={quality.compression_context_bytes}"
        require(((one.context, one.text) for one in work.compression), setting)
    setting = f"generation.prompt_bytes={generation.prompt_bytes}"
    require(((one.text, one.continuation) for one in work.prompts), setting)


def _windows(documents: Sequence[Document], size: int, context_bytes: int) -> Iterator[Window]:
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
