"""New rows for a set of n-grams, fitted on texts that the base model has read once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trimtab.adaptivocab.ngrams import NGrams
from trimtab.adaptivocab.rows.combination import combined, weights
from trimtab.adaptivocab.rows.extended import NewRows, extended
from trimtab.adaptivocab.rows.gradient import distill, match_hidden
from trimtab.adaptivocab.rows.head import Evidence, fit_head
from trimtab.adaptivocab.rows.passages import Passage
from trimtab.adaptivocab.rows.recovery import Recovery
from trimtab.adaptivocab.rows.targets import Lesson, Reading, Targets, predict, read, soft_cap
from trimtab.adaptivocab.rows.trie import Trie
from trimtab.adaptivocab.settings import Rows
from trimtab.adaptivocab.tokenizer.extender import Expression
from trimtab.corpus import encode, start_token
from trimtab.progress import track

ON_TEXT = (Rows.fitted, Rows.distilled)  # need texts that the base model has read
FITTED = (*ON_TEXT, Rows.recovered)  # begin with the paper's rows


@dataclass(frozen=True)
class ReadText:
    """A text, and the base model's reading of it."""

    text: str
    reading: Reading


def read_texts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], what: str
) -> list[ReadText]:
    """Have the base model read texts, under a progress bar that names them."""
    start = start_token(tokenizer)
    return [
        ReadText(text, read(model, torch.tensor(encode(tokenizer, text)), start))
        for text in track(texts, f"Base model reading {what}", len(texts))
    ]


@dataclass(frozen=True)
class Extension:
    """N-grams, and what makes tokens of them.

    Parameters
    ----------
    ngrams : NGrams
    rows : NewRows
    tokenizer : PreTrainedTokenizerBase
        The extended one.
    """

    ngrams: NGrams
    rows: NewRows
    tokenizer: PreTrainedTokenizerBase


class RowFitter:
    """Fits rows for any set of n-grams.

    Parameters
    ----------
    model : PreTrainedModel
        The base model; it is left as it was.
    expression : Expression
        Of the base tokenizer.
    streams : sequence of sequence of int
        Base tokens of more text, on which n-grams are counted.
    rows : Rows
    output : bool
        Whether n-grams are to be predicted too; otherwise the head gets no rows.

    Raises
    ------
    MisfitError
        If `recovered` rows have nothing to learn from, see `Recovery`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        expression: Expression,
        streams: Sequence[Sequence[int]],
        rows: Rows,
        *,
        output: bool,
    ) -> None:
        self._model = model
        self._expression = expression
        self._streams = streams
        self._rows = rows
        self.output = output
        self.start = start_token(expression.tokenizer)
        self._recovery = None
        if rows is Rows.recovered:
            self._recovery = Recovery.fit(model, expression.tokenizer, self.start)

    def extend(self, ngrams: NGrams, texts: Sequence[ReadText]) -> Extension:
        """Return `ngrams` with their tokenizer, and rows fitted on texts where any are fitted so.

        Parameters
        ----------
        texts : sequence of ReadText
            Read only for the kinds of rows in `ON_TEXT`.
        """
        tokenizer = self._expression.build(ngrams)
        passages = [Passage.of(text.text, tokenizer, ngrams) for text in texts]
        rows = self._fit(ngrams, passages, [text.reading for text in texts])
        if not self.output:
            rows = NewRows.of_input(rows.input)
        return Extension(ngrams, rows, tokenizer)

    def _fit(
        self, ngrams: NGrams, passages: Sequence[Passage], readings: Sequence[Reading]
    ) -> NewRows:
        embedding: Any = self._model.get_input_embeddings()
        head: Any = self._model.get_output_embeddings()
        kind = Rows.exponential if self._rows in FITTED else self._rows
        new_input = combined(embedding.weight, ngrams, weights(ngrams, kind, head=False))
        if self._recovery:
            new_input = self._recovery(ngrams.pieces)
        if self._rows not in ON_TEXT:
            new_head = combined(head.weight, ngrams, weights(ngrams, kind, head=True))
            return replace(NewRows.of_input(new_input), head=new_head)
        new_input = match_hidden(self._model, new_input, passages, self.start)
        if self._rows is Rows.fitted and not self.output:
            return NewRows.of_input(new_input)
        targets = self._targets(ngrams, passages, readings)
        evidence = self._evidence(new_input, passages, targets)
        new_head, changed_head = fit_head(head.weight, ngrams, evidence)
        rows = NewRows(new_input, new_head, targets.trie.firsts, changed_head)
        if self._rows is Rows.distilled:
            rows = distill(self._model, rows, passages, readings, targets, self.start)
        return rows

    def _targets(
        self, ngrams: NGrams, passages: Sequence[Passage], readings: Sequence[Reading]
    ) -> Targets:
        trie = Trie(ngrams)
        lessons = [
            Lesson.of(self._model, passage, reading, trie)
            for passage, reading in zip(passages, readings, strict=True)
        ]
        return Targets.of(passages, lessons, trie, trie.conditionals(trie.counts(self._streams)))

    def _evidence(
        self, new_input: Tensor, passages: Sequence[Passage], targets: Targets
    ) -> Evidence:
        """Read the merged tokens with the new input rows in place."""
        head: Any = self._model.get_output_embeddings()
        rows = NewRows.of_input(new_input)
        firsts, device = targets.trie.firsts, head.weight.device
        hidden, rest = [], []
        with extended(self._model, rows, output=False):
            for passage in track(passages, "Reading n-grams", len(passages)):
                logits, states = predict(self._model, passage.merged, self.start)
                logits[:, firsts.to(logits.device)] = -torch.inf
                hidden.append(states.to(device))
                rest.append(logits.logsumexp(-1).to(device))
        return Evidence(torch.cat(hidden), torch.cat(rest), targets, soft_cap(self._model))
