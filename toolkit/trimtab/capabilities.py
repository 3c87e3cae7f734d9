"""What an applied method may offer, each a protocol of its own.

A method's `apply` yields any object. What generation and evaluation can do with it depends on
which of these protocols that object fulfils, and on nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from trimtab.vattention.settings import CacheSettings


class DraftSession(Protocol):
    """The drafts of one text, which it is shown token by token."""

    def accept(self, tokens: Sequence[int]) -> None:
        """Take in the next tokens of the text, whether they were proposed or not."""

    def propose(self, limit: int) -> Sequence[tuple[int, float]]:
        """Return up to `limit` likely next tokens of the output tokenizer, often none.

        Each with the probability that it is right if those before it are.
        """


@runtime_checkable
class Drafter(Protocol):
    """Proposes how texts may go on, for the model to verify."""

    def start(self, ids: Sequence[int]) -> DraftSession:
        """Return the drafts of a text that begins with the tokens `ids`."""


@runtime_checkable
class ChangesVocabulary(Protocol):
    """Reads prompts, or writes text, in other tokens than the model did before."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of prompts."""

    @property
    def output_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of what the model generates."""

    @property
    def ngram_tokens(self) -> Mapping[int, tuple[int, ...]]:
        """Output tokens that stand for several tokens of the tokenizer before, and which."""

    def base_output(self) -> AbstractContextManager[None]:
        """Have the model predict tokens of the tokenizer before alone within the block."""


@runtime_checkable
class ProposesDrafts(Protocol):
    """Has a drafter for the generation engine."""

    @property
    def drafter(self) -> Drafter:
        """What proposes tokens."""


@runtime_checkable
class ProvidesCache(Protocol):
    """Has the generation engine keep keys and values its way."""

    @property
    def cache(self) -> CacheSettings:
        """The settings of the engine's KV cache."""


@runtime_checkable
class SkipsBytes(Protocol):
    """Leaves weights unread that a token does not need."""

    def recording(self) -> AbstractContextManager[None]:
        """Count what is read within the block; off while time is measured."""

    def extra_step_bytes(self) -> int:
        """Return the bytes a decode step reads beyond the parameters, less those it skips.

        As counted while recording.
        """


@runtime_checkable
class RunsKernel(Protocol):
    """Has a kernel of its own run."""

    @property
    def kernel(self) -> str:
        """What runs on the model's device."""


@runtime_checkable
class Measures(Protocol):
    """Has something to say in result.json."""

    def measured(self) -> dict[str, Any]:
        """Return sections of result.json by name, from what was counted while recording.

        Where a field is None, its section's `reasons` says why, by the field's name within the
        section: ``{"vocabulary": {"validation": None, "reasons": {"validation": "..."}}}``.
        """
