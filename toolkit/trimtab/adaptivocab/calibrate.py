"""From a model and a corpus to a vocabulary: mine, fit rows, keep to the budget, count drafts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trimtab import shards
from trimtab.adaptivocab.drafting.drafter import ContextDrafter
from trimtab.adaptivocab.mining.frequency import FrequencySelection
from trimtab.adaptivocab.mining.pair_merging import PairMerging
from trimtab.adaptivocab.mining.texts import Mined, TokenizedText, tokenize, up_to
from trimtab.adaptivocab.ngrams import NGrams
from trimtab.adaptivocab.quality_budget import QualityBudget
from trimtab.adaptivocab.rows.fit import ON_TEXT, Extension, RowFitter, require_gradients
from trimtab.adaptivocab.rows.scoring import ScoredText, score_texts
from trimtab.adaptivocab.settings import AdaptiVocabSettings, Mode, NGramSelection
from trimtab.adaptivocab.tokenizer.extender import TokenizerExtender
from trimtab.adaptivocab.vocabulary import Vocabulary
from trimtab.corpus import Corpus, Split, encode
from trimtab.errors import MisfitError, TrimtabError
from trimtab.files import write_json
from trimtab.progress import say, waiting
from trimtab.windows import text_windows

MEASURED = "operating_points.json"  # in the checkpoint
SELECTIONS: dict[NGramSelection, type[PairMerging] | type[FrequencySelection]] = {
    NGramSelection.merging: PairMerging,
    NGramSelection.paper: FrequencySelection,
}


class Calibrator:
    """Finds the vocabulary that some settings describe, for one model and one corpus.

    Attributes
    ----------
    statistics : dict
        What was measured on the way, JSON values only.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        corpus: Corpus,
        checkpoint: Path,
        settings: AdaptiVocabSettings,
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._corpus = corpus
        self._checkpoint = checkpoint / MEASURED
        self._settings = settings
        self.statistics: dict[str, Any] = {}

    def run(self) -> Vocabulary:
        mode = self._settings.mode
        extension = None if mode is Mode.draft else self._merge()
        vocabulary = Vocabulary(NGrams(self._base_size, ()), None, None, None)
        if extension:
            vocabulary = Vocabulary(extension.ngrams, extension.rows, extension.tokenizer, None)
        if mode in (Mode.draft, Mode.auto):
            vocabulary = replace(vocabulary, drafter=self._drafter(vocabulary))
        return vocabulary

    @property
    def _base_size(self) -> int:
        embedding: Any = self._model.get_input_embeddings()
        return max(embedding.weight.shape[0], len(self._tokenizer))

    def _merge(self) -> Extension | None:
        """Return the n-grams that become tokens."""
        require_gradients(self._model, self._settings.rows)
        embedding: Any = self._model.get_input_embeddings()
        if len(self._tokenizer) > embedding.weight.shape[0]:
            raise MisfitError(
                f"the tokenizer has {len(self._tokenizer)} tokens and the model's embedding "
                f"{embedding.weight.shape[0]} rows, where those of n-grams would begin: give the "
                "model a row for every token with resize_token_embeddings, or use "
                "adaptivocab.mode=draft"
            )
        settings, extender = self._settings, TokenizerExtender(self._tokenizer)
        documents = self._corpus.documents(Split.calibration)
        tokenized = list(tokenize(documents, extender, settings.mining_tokens))
        fitter = RowFitter(
            self._model,
            extender,
            [text.tokens for text in tokenized],
            settings.rows,
            output=settings.mode is not Mode.input,
        )
        with waiting("Mining n-grams"):
            mined = self._mine(tokenized, extender)
        saving = sum(mined.saved) / mined.tokens
        say(f"Mined {len(mined.ngrams)} n-grams: {saving:.1%} fewer tokens of calibration text")
        ngrams = NGrams(self._base_size, tuple(mined.ngrams))
        self.statistics |= {
            "tokenizer": "tokenizer.json" if extender.expressible else "wrapper",
            "tokenizer_reason": extender.reason or None,
            "mined": {"tokens": mined.tokens, "saving": saving, "saved": mined.saved},
            "ngram_tokens": [list(ngram) for ngram in mined.ngrams],
        }
        on_text = settings.rows in ON_TEXT
        texts = self._score(Split.calibration, settings.tokens) if on_text else []
        if settings.max_bpb_increase is None:
            extension: Extension | None = fitter.extend(ngrams, texts)
        else:
            extension = self._within_budget(ngrams, fitter, texts, settings.max_bpb_increase)
        self.statistics["merged"] = len(extension.ngrams) if extension else 0
        return extension

    def _within_budget(
        self, ngrams: NGrams, fitter: RowFitter, texts: list[ScoredText], limit: float
    ) -> Extension | None:
        settings = self._settings
        held_out = self._score(Split.validation, settings.validation_tokens)
        budget = QualityBudget(self._model, fitter, held_out, limit)
        if not shards.agreed(self._is_measured()):
            few = texts[: max(settings.validation_tokens // settings.window, 1)]
            measured = budget.measure(ngrams, few)
            if shards.writes():  # most of the work, so a killed calibration keeps it
                write_json(self._checkpoint, measured)
            shards.wait()
        measured = json.loads(self._checkpoint.read_text("utf-8"))
        extension, points = budget.merge(ngrams, measured, texts)
        self.statistics["quality_budget"] = {**measured, "merged": points}
        return extension

    def _is_measured(self) -> bool:
        """Return whether a killed calibration left the operating points, whole."""
        try:
            json.loads(self._checkpoint.read_text("utf-8"))
            return True
        except FileNotFoundError:
            return False
        except ValueError:
            say(f"{self._checkpoint} is damaged: measuring the operating points anew")
            return False

    def _mine(self, texts: Sequence[TokenizedText], extender: TokenizerExtender) -> Mined:
        selection = SELECTIONS[self._settings.selection]
        mined = selection(
            texts, self._settings.max_ngram, extender.admissible, extender.aligned
        ).run(self._settings.size)
        if not mined.ngrams:
            raise TrimtabError(
                "no n-gram that can be a token, without digits and special tokens, occurs twice "
                f"in the {mined.tokens} tokens of the calibration text of {self._corpus.name}: use "
                "a larger corpus"
            )
        return mined

    def _drafter(self, vocabulary: Vocabulary) -> ContextDrafter:
        """Count what follows what, in the text as the model is going to generate it."""
        tokenizer = vocabulary.tokenizer or self._tokenizer

        def texts_of(split: Split) -> list[list[int]]:
            encoded = (encode(tokenizer, one.text) for one in self._corpus.splits[split])
            texts = (TokenizedText(tokens, []) for tokens in encoded)
            return [text.tokens for text in up_to(self._settings.mining_tokens, texts)]

        with waiting("Counting drafts"):
            drafter = ContextDrafter.count(texts_of(Split.calibration))
            held_out = texts_of(Split.validation)
            steps = sum(drafter.steps(tokens) for tokens in held_out)
        tokens = sum(map(len, held_out))
        self.statistics["drafter"] = {
            "contexts": len(drafter.counts),
            "validation_tokens": tokens,
            "validation_steps": steps,
        }
        if tokens:
            say(f"Drafts: {tokens / steps:.3f} tokens of validation text per step")
        return drafter

    def _score(self, split: Split, tokens: int) -> list[ScoredText]:
        documents, window = self._corpus.splits[split], self._settings.window
        texts = text_windows(documents, self._tokenizer, tokens, window)
        if not texts:
            unlimited = ", or max_bpb_increase=null to merge without a quality budget"
            raise TrimtabError(
                f"the {split} split of {self._corpus.name} has no text of half a window of "
                f"{self._settings.window} tokens: use a larger corpus or a smaller window"
                + (unlimited if split is Split.validation else "")
            )
        return score_texts(self._model, self._tokenizer, texts, f"{split} text")
