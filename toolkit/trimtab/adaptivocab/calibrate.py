"""From a model and a corpus to a vocabulary: mine, fit, gate, count drafts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trimtab.adaptivocab.drafting.drafter import Drafts
from trimtab.adaptivocab.guard import Guard
from trimtab.adaptivocab.mining.frequency import FrequencySelection
from trimtab.adaptivocab.mining.pair_merging import PairMerging
from trimtab.adaptivocab.mining.texts import Admissible, Mined, Stream, first, streams
from trimtab.adaptivocab.ngrams import NGrams
from trimtab.adaptivocab.rows.fit import ON_TEXT, Extension, ReadText, RowFitter, read_texts
from trimtab.adaptivocab.rows.passages import cut
from trimtab.adaptivocab.settings import AdaptiVocabSettings, Mode, NGramSelection
from trimtab.adaptivocab.tokenizer.extender import Expression
from trimtab.adaptivocab.vocabulary import Vocabulary
from trimtab.corpus import Corpus, Split, encode
from trimtab.errors import MisfitError, TrimtabError
from trimtab.files import write_json
from trimtab.progress import say, waiting

GATE = "gate.json"
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
        self._checkpoint = checkpoint / GATE
        self._settings = settings
        self._expression = Expression.of(tokenizer)
        documents = corpus.documents(Split.calibration)
        self._streams = list(streams(documents, self._expression, settings.mining_tokens))
        self.statistics: dict[str, Any] = {
            "tokenizer": "tokenizer.json" if self._expression.native else "wrapper",
            "tokenizer_reason": self._expression.reason or None,
        }

    def run(self) -> Vocabulary:
        mode = self._settings.mode
        extension = None if mode is Mode.draft else self._merge()
        vocabulary = Vocabulary(NGrams(self._base_size, ()), None, None, None)
        if extension:
            vocabulary = Vocabulary(extension.ngrams, extension.rows, extension.tokenizer, None)
        if mode in (Mode.draft, Mode.auto):
            vocabulary = replace(vocabulary, drafts=self._drafts(vocabulary))
        return vocabulary

    @property
    def _base_size(self) -> int:
        embedding: Any = self._model.get_input_embeddings()
        return max(embedding.weight.shape[0], len(self._tokenizer))

    def _merge(self) -> Extension | None:
        """Return the n-grams that become tokens."""
        embedding: Any = self._model.get_input_embeddings()
        if len(self._tokenizer) > embedding.weight.shape[0]:
            raise MisfitError(
                f"the tokenizer has {len(self._tokenizer)} tokens and the model's embedding "
                f"{embedding.weight.shape[0]} rows, behind which n-grams would be: give the model "
                "a row for every token with resize_token_embeddings, or use adaptivocab.mode=draft"
            )
        settings = self._settings
        fitter = RowFitter(
            self._model,
            self._expression,
            [stream.tokens for stream in self._streams],
            settings.rows,
            output=settings.mode is not Mode.input,
        )
        with waiting("Mining n-grams"):
            mined = self._mine(
                self._streams, self._expression.admissible, aligned=self._expression.aligned
            )
        saving = sum(mined.saved) / mined.tokens
        say(f"Mined {len(mined.pieces)} n-grams: {saving:.1%} fewer tokens of calibration text")
        ngrams = NGrams(self._base_size, tuple(mined.pieces))
        self.statistics |= {
            "mined": {"tokens": mined.tokens, "saving": saving, "saved": mined.saved},
            "pieces": [list(pieces) for pieces in mined.pieces],
        }
        fitted = settings.rows in ON_TEXT
        texts = self._read(Split.calibration, settings.tokens) if fitted else []
        if settings.max_bpb_increase is None:
            extension: Extension | None = fitter.extend(ngrams, texts)
        else:
            extension = self._guarded(ngrams, fitter, texts, settings.max_bpb_increase)
        self.statistics["merged"] = len(extension.ngrams) if extension else 0
        return extension

    def _guarded(
        self, ngrams: NGrams, fitter: RowFitter, texts: list[ReadText], limit: float
    ) -> Extension | None:
        settings = self._settings
        held_out = self._read(Split.validation, settings.validation_tokens)
        guard = Guard(self._model, fitter, held_out, limit)
        if not self._checkpoint.exists():  # most of the work: kept, should we be killed
            few = texts[: max(settings.validation_tokens // settings.window, 1)]
            write_json(self._checkpoint, guard.turn_dial(ngrams, few))
        turned = json.loads(self._checkpoint.read_text("utf-8"))
        extension, points = guard.merge(ngrams, turned, texts)
        self.statistics["gate"] = {**turned, "merged": points}
        return extension

    def _mine(self, texts: Sequence[Stream], admissible: Admissible, *, aligned: bool) -> Mined:
        selection = SELECTIONS[self._settings.selection]
        mined = selection(texts, self._settings.max_ngram, admissible, aligned).run(
            self._settings.size
        )
        if not mined.pieces:
            raise TrimtabError(
                f"no n-gram occurs twice in the {mined.tokens} tokens of the calibration text of "
                f"{self._corpus.name}: use a larger corpus"
            )
        return mined

    def _drafts(self, vocabulary: Vocabulary) -> Drafts:
        """Mine and count drafts on the text as the model is going to generate it.

        What is only proposed need not fit a tokenizer: these n-grams may begin and end within
        words and hold digits, but no special token.
        """
        special = self._tokenizer.added_tokens_decoder
        tokenizer = vocabulary.tokenizer or self._tokenizer

        def tokens_of(split: Split) -> list[Stream]:
            texts = (encode(tokenizer, one.text) for one in self._corpus.splits[split])
            limit = self._settings.mining_tokens
            return list(first(limit, (Stream(text, [0] * len(text)) for text in texts)))

        with waiting("Counting drafts"):
            counted = tokens_of(Split.calibration)
            mined = self._mine(
                counted, lambda pieces, _: special.keys().isdisjoint(pieces), aligned=False
            )
            ngrams = NGrams(vocabulary.merged.size, tuple(mined.pieces))
            drafts = Drafts.count(ngrams, [stream.tokens for stream in counted])
            held_out = [stream.tokens for stream in tokens_of(Split.validation)]
            steps = sum(drafts.steps(stream) for stream in held_out)
        tokens = sum(map(len, held_out))
        self.statistics["drafts"] = {
            "ngrams": len(ngrams),
            "validation_tokens": tokens,
            "validation_steps": steps,
        }
        if tokens:
            say(f"Drafts: {tokens / steps:.3f} tokens of validation text per step")
        return drafts

    def _read(self, split: Split, tokens: int) -> list[ReadText]:
        texts = cut(self._corpus.splits[split], self._tokenizer, tokens, self._settings.window)
        if not texts:
            unguarded = ", or max_bpb_increase=null to merge without a guard"
            raise TrimtabError(
                f"the {split} split of {self._corpus.name} has no text of half a window of "
                f"{self._settings.window} tokens: use a larger corpus or a smaller window"
                + (unguarded if split is Split.validation else "")
            )
        return read_texts(self._model, self._tokenizer, texts, f"{split} text")
