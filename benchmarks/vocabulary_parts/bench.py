"""What the parts share: a model, a text to calibrate on, and another to beware of."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from texts import python_texts

from trimtab.adaptivocab.calibrate import SELECTIONS
from trimtab.adaptivocab.mining.pair_merging import PairMerging
from trimtab.adaptivocab.mining.texts import streams
from trimtab.adaptivocab.ngrams import NGrams
from trimtab.adaptivocab.quality_budget import Scored
from trimtab.adaptivocab.rows.fit import Extension, ReadText, RowFitter, read_texts
from trimtab.adaptivocab.rows.passages import Passage, cut
from trimtab.adaptivocab.settings import NGramSelection, Rows
from trimtab.adaptivocab.tokenizer.extender import Expression
from trimtab.adaptivocab.tokenizer.matching import Matcher
from trimtab.corpus import Corpus, Split, encode, start_token
from trimtab.evaluation.intervals import Estimate, rate_difference
from trimtab.models.loading import load_model
from trimtab.models.sources import DType, EmbeddedModel

MAX_PIECES = 4
WINDOW = 512
ENOUGH = 10**7  # base tokens: all of either text
Record = dict[str, Any]


class Bench:
    """One model, a text to calibrate on, another to beware of, and what both parts share."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.loaded = load_model(EmbeddedModel(device="auto", dtype=DType.auto))
        self.texts = python_texts()
        self.corpus = self.texts.pop(options.text)
        (self.other,) = self.texts.values()
        self.size, self.kinds = options.size, options.rows
        self.fit_tokens, self.test_tokens = options.fit_tokens, options.test_tokens
        self.tokenizer = self.loaded.tokenizer
        self.start = start_token(self.tokenizer)
        self.expression = Expression.of(self.tokenizer)
        documents = self.corpus.documents(Split.calibration)
        self.streams = list(streams(documents, self.expression, ENOUGH))
        embedding: Any = self.loaded.model.get_input_embeddings()
        self.base_size = max(embedding.weight.shape[0], len(self.tokenizer))

    def mine(self, choice: NGramSelection, size: int, max_ngram: int = MAX_PIECES) -> NGrams:
        selection = SELECTIONS[choice](
            self.streams, max_ngram, self.expression.admissible, self.expression.aligned
        )
        return NGrams(self.base_size, tuple(selection.run(size).pieces))

    def mine_freely(self, size: int) -> NGrams:
        """Mine n-grams of all but special tokens, whether or not a tokenizer could have them."""
        special = self.tokenizer.added_tokens_decoder
        selection = PairMerging(
            self.streams, MAX_PIECES, lambda pieces, _: special.keys().isdisjoint(pieces), False
        )
        return NGrams(self.base_size, tuple(selection.run(size).pieces))

    def saving(self, ngrams: NGrams, corpus: Corpus, *, freely: bool = False) -> Estimate:
        """Return the share of held-out tokens saved, its interval by resampling documents.

        `freely` finds n-grams in base tokens, without a tokenizer that has them.
        """
        tokenizer = None if freely else self.expression.build(ngrams)
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

    def read(self, corpus: Corpus, split: Split, tokens: int) -> list[ReadText]:
        texts = cut(corpus.documents(split), self.tokenizer, tokens, WINDOW)
        return read_texts(self.loaded.model, self.tokenizer, texts, f"{corpus.name}, {split}")

    def fitter(self, rows: Rows) -> RowFitter:
        tokens = [stream.tokens for stream in self.streams]
        return RowFitter(self.loaded.model, self.expression, tokens, rows, output=True)

    def score(self, extension: Extension, texts: Sequence[ReadText], *, output: bool) -> Scored:
        """Read texts in n-grams; without `output` the base head predicts what comes next."""
        passages = [Passage.of(text.text, extension.tokenizer, extension.ngrams) for text in texts]
        model = self.loaded.model
        return Scored.of(model, extension.rows, passages, texts, self.start, output=output)
