"""What AdaptiVocab offers once it is applied: that depends on what its calibration found."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from typing_extensions import TypedDict  # pydantic reads no other before Python 3.12

from trimtab.adaptivocab.drafting.drafter import ContextDrafter
from trimtab.adaptivocab.quality_budget import MeasuredPoint
from trimtab.adaptivocab.rows.extended import base_head


class VocabularySection(TypedDict):
    """Result.json's `vocabulary`."""

    merged: int
    quality_budget: float | None
    operating_points: list[MeasuredPoint] | None
    validation: MeasuredPoint | None


@dataclass(frozen=True)
class Unchanged:
    """No n-gram is a token, and nothing drafts: there is only something to report.

    Parameters
    ----------
    vocabulary : dict
        `VocabularySection`, with `reasons`.
    """

    vocabulary: dict[str, Any]

    def measured(self) -> dict[str, Any]:
        """Return result.json's `vocabulary`."""
        return {"vocabulary": self.vocabulary}


@dataclass(frozen=True)
class Drafting(Unchanged):
    """What probably follows is proposed as drafts."""

    drafter: ContextDrafter


@dataclass(frozen=True)
class Merging(Unchanged):
    """N-grams are tokens.

    Parameters
    ----------
    model : PreTrainedModel
        With rows for n-grams.
    base_head : Parameter
        The weight of its head without them.
    tokenizer, output_tokenizer, ngram_tokens
        See `trimtab.capabilities.ChangesVocabulary`.
    """

    model: PreTrainedModel
    base_head: nn.Parameter
    tokenizer: PreTrainedTokenizerBase
    output_tokenizer: PreTrainedTokenizerBase
    ngram_tokens: Mapping[int, tuple[int, ...]]

    def base_output(self) -> AbstractContextManager[None]:
        """Have the model predict base tokens alone within the block."""
        return base_head(self.model, self.base_head)


@dataclass(frozen=True)
class MergingAndDrafting(Merging, Drafting):
    """Some n-grams are tokens, and what probably follows is proposed as drafts."""
