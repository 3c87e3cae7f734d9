"""From a model and a corpus to a vocabulary: mine, fit, gate, count drafts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from toolkit.adaptivocab.drafts import Drafts
from toolkit.adaptivocab.extended import NewRows
from toolkit.adaptivocab.fit import ReadText, RowFitter, read_texts
from toolkit.adaptivocab.frequency import FrequencySelection
from toolkit.adaptivocab.gating import Point, Scored, costs, order_by_cost, turn_dial
from toolkit.adaptivocab.merging import PairMerging
from toolkit.adaptivocab.ngrams import NGrams
from toolkit.adaptivocab.passages import Passage, cut
from toolkit.adaptivocab.settings import Choice, Mode, Settings
from toolkit.adaptivocab.streams import Admissible, Mined, Stream, streams
from toolkit.adaptivocab.tokenizer import Expression
from toolkit.adaptivocab.vocabulary import Vocabulary
from toolkit.corpus import Corpus, Split, encode
from toolkit.errors import TrimtabError
from toolkit.files import write_json
from toolkit.progress import say, waiting

GATE = "gate.json"
SELECTIONS: dict[Choice, type[PairMerging] | type[FrequencySelection]] = {
    Choice.merging: PairMerging,
    Choice.paper: FrequencySelection,
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
        settings: Settings,
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
        merged, rows, tokenizer = NGrams(self._base_size, ()), None, None
        if mode is not Mode.draft:
            merged, rows, tokenizer = self._merge()
        drafts = None
        if mode in (Mode.draft, Mode.auto):
            drafts = self._drafts(merged, tokenizer or self._tokenizer)
        return Vocabulary(merged, rows, tokenizer, drafts)

    @property
    def _base_size(self) -> int:
        embedding: Any = self._model.get_input_embeddings()
        return max(embedding.weight.shape[0], len(self._tokenizer))

    def _merge(self) -> tuple[NGrams, NewRows | None, PreTrainedTokenizerBase | None]:
        """Return the n-grams that become tokens, their rows and the tokenizer that has them."""
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
        tokens = [stream.tokens for stream in self._streams]
        fitter = RowFitter(self._model, self._tokenizer, tokens, self._settings.rows)
        texts = self._read(Split.calibration, self._settings.tokens)
        if self._settings.max_bpb_increase is not None:
            if not self._checkpoint.exists():  # most of the work: kept, should we be killed
                write_json(self._checkpoint, self._gate(ngrams, fitter, texts))
            gate = json.loads(self._checkpoint.read_text("utf-8"))
            self.statistics["gate"] = gate
            ngrams = ngrams.subset(gate["order"][: gate["kept"]])
        self.statistics["merged"] = len(ngrams)
        if not len(ngrams):
            return ngrams, None, None
        tokenizer = self._expression.build(ngrams)
        return ngrams, fitter.fit(ngrams, tokenizer, texts), tokenizer

    def _mine(self, texts: Sequence[Stream], admissible: Admissible, *, aligned: bool) -> Mined:
        selection = SELECTIONS[self._settings.selection]
        mined = selection(texts, self._settings.max_pieces, admissible, aligned).run(
            self._settings.size
        )
        if not mined.pieces:
            raise TrimtabError(
                f"no n-gram occurs twice in the {mined.tokens} tokens of the calibration text of "
                f"{self._corpus.name}: use a larger corpus"
            )
        return mined

    def _drafts(self, merged: NGrams, tokenizer: PreTrainedTokenizerBase) -> Drafts:
        """Mine and count drafts on the text as the model is going to generate it.

        What is only proposed need not fit a tokenizer: these n-grams may begin and end within
        words and hold digits, but no special token.
        """
        special = self._tokenizer.added_tokens_decoder
        documents = self._corpus.documents(Split.calibration)
        held_out = self._corpus.splits[Split.validation]
        with waiting("Counting drafts"):
            texts = [encode(tokenizer, document.text) for document in documents]
            mined = self._mine(
                [Stream(text, [0] * len(text)) for text in texts],
                lambda pieces, _: special.keys().isdisjoint(pieces),
                aligned=False,
            )
            ngrams = NGrams(merged.size, tuple(mined.pieces))
            drafts = Drafts.count(ngrams, texts)
            streams = [encode(tokenizer, document.text) for document in held_out]
            steps = sum(drafts.steps(stream) for stream in streams)
        tokens = sum(map(len, streams))
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
            raise TrimtabError(
                f"the {split} split of {self._corpus.name} has no text of half a window of "
                f"{self._settings.window} tokens: use a larger corpus, a smaller window, or "
                "max_bpb_increase=null to merge without a guard"
            )
        return read_texts(self._model, self._tokenizer, texts, f"{split} text")

    def _gate(self, ngrams: NGrams, fitter: RowFitter, texts: list[ReadText]) -> dict[str, Any]:
        """Return the n-grams' costs and order, the dial, and how many the guard lets through."""
        guard = self._settings.max_bpb_increase
        assert guard is not None
        held_out = self._read(Split.validation, self._settings.gate_tokens)
        few = texts[: max(self._settings.gate_tokens // self._settings.window, 1)]
        order = list(range(len(ngrams)))

        def measure(count: int) -> Scored:
            subset = ngrams.subset(order[:count])
            tokenizer = self._expression.build(subset)
            rows = fitter.fit(subset, tokenizer, few)
            passages = [Passage.of(text.text, tokenizer, subset) for text in held_out]
            return Scored.of(self._model, rows, passages, held_out, fitter.start)

        everything = measure(len(ngrams))
        cost = costs(everything, ngrams)
        order = order_by_cost(ngrams, cost)

        def point(count: int) -> Point:
            scored = everything if count == len(ngrams) else measure(count)
            found = scored.point(count)
            say(
                f"{count} n-grams: {found.saving:.1%} fewer tokens of validation text, bits per "
                f"byte {found.increase:+.2%}"
            )
            return found

        kept, dial = turn_dial(len(ngrams), point, guard)
        say(f"The guard of {guard:+.2%} lets {kept} of {len(ngrams)} n-grams through")
        return {
            "cost_nats_per_saved_token": cost,
            "order": order,
            "dial": [one.to_json() for one in dial],
            "kept": kept,
        }
