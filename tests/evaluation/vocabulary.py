"""A method that puts n-grams into a tiny model's vocabulary, with random rows for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pydoc_data.topics import topics
from typing import Any, ClassVar

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tests.adaptivocab.tokenizers import mined
from trimtab.adaptivocab.applied import Drafting, Merging
from trimtab.adaptivocab.drafting.drafter import ContextDrafter
from trimtab.adaptivocab.ngrams import NGrams
from trimtab.adaptivocab.rows.extended import NewRows, extended
from trimtab.adaptivocab.tokenizer.extender import TokenizerExtender
from trimtab.artifact import Artifact
from trimtab.corpus import encode
from trimtab.method import DRAFTS, TOKENIZER, Method, Stage
from trimtab.models.random import byte_tokenizer
from trimtab.settings import Settings, setting, settings

ROWS = 320  # of the tiny models' vocabularies
TEXTS = sorted(topics.values())[:8]


@cache
def ngrams() -> NGrams:
    return NGrams(ROWS, mined(TokenizerExtender(byte_tokenizer()), TEXTS, 30))


@cache
def extended_tokenizer() -> PreTrainedTokenizerBase:
    return TokenizerExtender(byte_tokenizer()).build(ngrams())


UNMEASURED = ("quality_budget", "operating_points", "validation")
SECTION = {
    "merged": 0,
    **dict.fromkeys(UNMEASURED),
    "reasons": dict.fromkeys(UNMEASURED, "a stand-in"),
}


@cache
def drafts() -> ContextDrafter:
    tokenizer = byte_tokenizer()
    return ContextDrafter.count([encode(tokenizer, text) for text in TEXTS])


@settings
class Vocabulary(Settings, Method):
    """N-grams in one of AdaptiVocab's modes: full, input or draft."""

    name: ClassVar[str] = "vocabulary"
    stage: ClassVar[Stage] = Stage.vocabulary
    calibrated: ClassVar[bool] = False

    mode: str = setting(default="full", meaning="which tokens are new")

    def check(self, model: PreTrainedModel) -> None:
        assert model.get_input_embeddings().weight.shape[0] == ROWS

    def claims(self, model: PreTrainedModel) -> frozenset[str]:
        return frozenset({DRAFTS if self.mode == "draft" else TOKENIZER})

    @contextmanager
    def applying(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        artifact: Artifact | None,
    ) -> Iterator[Drafting | Merging]:
        if self.mode == "draft":
            yield Drafting(SECTION, drafter=drafts())
            return
        full = self.mode == "full"
        head = model.get_output_embeddings().weight
        with extended(model, new_rows(model), output=full):
            yield Merging(
                SECTION,
                model=model,
                base_head=head,
                tokenizer=extended_tokenizer(),
                output_tokenizer=extended_tokenizer() if full else tokenizer,
                ngram_tokens=ngrams().by_id() if full else {},
            )


def new_rows(model: PreTrainedModel) -> NewRows:
    width = model.get_input_embeddings().weight.shape[1]
    draw = torch.Generator().manual_seed(0)
    rows = [0.02 * torch.randn(len(ngrams()), width, generator=draw) for _ in range(2)]
    return NewRows(*rows, torch.empty(0, dtype=torch.int64), torch.empty(0, width))


def node(mode: str) -> dict[str, Any]:
    """Return the configuration of a stack of this method."""
    target = f"{Vocabulary.__module__}.{Vocabulary.__qualname__}"
    return {"vocabulary": {"_target_": target, "mode": mode}}
