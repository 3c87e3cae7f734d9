"""What the parts share: a model, a text to calibrate on, and another to compare."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from kv_parts.generating import model_config
from texts import python_texts

from trimtab.adaptivocab.calibrate import SELECTIONS
from trimtab.adaptivocab.mining.pair_merging import PairMerging
from trimtab.adaptivocab.mining.texts import tokenize
from trimtab.adaptivocab.ngrams import Matcher, NGrams
from trimtab.adaptivocab.rows.fit import Extension, RowFitter
from trimtab.adaptivocab.rows.passages import Passage
from trimtab.adaptivocab.rows.scoring import ScoredPassages, ScoredText, score_texts
from trimtab.adaptivocab.settings import NGramSelection, Rows
from trimtab.adaptivocab.tokenizer.extender import TokenizerExtender
from trimtab.corpus import Corpus, Split, encode, start_token
from trimtab.evaluation.intervals import Estimate, rate_difference
from trimtab.models.loading import load_model
from trimtab.windows import text_windows

MAX_NGRAM = 4
WINDOW = 512
ENOUGH = 10**7  # base tokens: all of either text
Record = dict[str, Any]


class Bench:
    """One model, a text to calibrate on, and another, where n-grams could do harm."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.loaded = load_model(model_config(options))
        self.texts = python_texts()
        self.corpus = self.texts.pop(options.text)
        (self.other,) = self.texts.values()
        self.size, self.kinds = options.size, options.rows
        self.fit_tokens, self.test_tokens = options.fit_tokens, options.test_tokens
        self.tokenizer = self.loaded.tokenizer
        self.start = start_token(self.tokenizer)
        self.extender = TokenizerExtender(self.tokenizer)
        documents = self.corpus.documents(Split.calibration)
        self.tokenized = list(tokenize(documents, self.extender, ENOUGH))
        embedding: Any = self.loaded.model.get_input_embeddings()
        self.base_size = max(embedding.weight.shape[0], len(self.tokenizer))

    def mine(self, kind: NGramSelection, size: int, max_ngram: int = MAX_NGRAM) -> NGrams:
        selection = SELECTIONS[kind](
            self.tokenized, max_ngram, self.extender.admissible, self.extender.aligned
        )
        return NGrams(self.base_size, tuple(selection.run(size).ngrams))

    def mine_freely(self, size: int) -> NGrams:
        """Mine n-grams of all but special tokens, whether or not a tokenizer could have them."""
        special = self.tokenizer.added_tokens_decoder
        selection = PairMerging(
            self.tokenized, MAX_NGRAM, lambda ngram, _: special.keys().isdisjoint(ngram), False
        )
        return NGrams(self.base_size, tuple(selection.run(size).ngrams))

    def saving(self, ngrams: NGrams, corpus: Corpus, *, freely: bool = False) -> Estimate:
        """Return the share of held-out tokens saved, its interval by resampling documents.

        `freely` finds n-grams in base tokens, without a tokenizer that has them.
        """
        tokenizer = None if freely else self.extender.build(ngrams)
        matcher = Matcher(ngrams)
        base_tokens, merged_tokens = [], []
        for document in corpus.documents(Split.test):
            base = encode(self.tokenizer, document.text)
            merged = (
                encode(tokenizer, document.text)
                if tokenizer
                else [token for _, _, token in matcher(base)]
            )
            assert ngrams.expand(merged) == base
            base_tokens.append(float(len(base)))
            merged_tokens.append(float(len(merged)))
        return rate_difference(merged_tokens, base_tokens, base_tokens, seed=0)

    def base_scores(self, corpus: Corpus, split: Split, tokens: int) -> list[ScoredText]:
        texts = text_windows(corpus.documents(split), self.tokenizer, tokens, WINDOW)
        return score_texts(self.loaded.model, self.tokenizer, texts, f"{corpus.name}, {split}")

    def fitter(self, rows: Rows) -> RowFitter:
        tokens = [text.tokens for text in self.tokenized]
        return RowFitter(self.loaded.model, self.extender, tokens, rows, output=True)

    def score(
        self, extension: Extension, texts: Sequence[ScoredText], *, output: bool
    ) -> ScoredPassages:
        """Score texts in n-grams; without `output` the base head predicts what comes next."""
        passages = [Passage.of(text.text, extension.tokenizer, extension.ngrams) for text in texts]
        model = self.loaded.model
        return ScoredPassages.of(model, extension.rows, passages, texts, self.start, output=output)
