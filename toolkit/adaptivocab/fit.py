"""New rows for a set of n-grams, fitted on texts that the base model has read once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from toolkit.adaptivocab.extended import NewRows, extended
from toolkit.adaptivocab.head import Evidence, fit_head
from toolkit.adaptivocab.ngrams import NGrams
from toolkit.adaptivocab.passages import Passage
from toolkit.adaptivocab.recovery import Recovery
from toolkit.adaptivocab.rows import Rows, combined, weights
from toolkit.adaptivocab.teacher import Lesson, Reading, Targets, predict, read, soft_cap
from toolkit.adaptivocab.trie import Trie
from toolkit.adaptivocab.tuning import distill, match_hidden
from toolkit.corpus import encode, start_token
from toolkit.progress import track

FITTED = (Rows.closed, Rows.distilled, Rows.recovered)  # begin with the paper's rows


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


class RowFitter:
    """Fits rows for any set of n-grams on the same texts.

    Parameters
    ----------
    model : PreTrainedModel
        The base model; it is left as it was.
    tokenizer : PreTrainedTokenizerBase
        The base tokenizer.
    streams : sequence of sequence of int
        Base tokens of more text, on which n-grams are counted.
    rows : Rows

    Raises
    ------
    MisfitError
        If `recovered` rows have nothing to learn from, see `Recovery`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        streams: Sequence[Sequence[int]],
        rows: Rows,
    ) -> None:
        self._model = model
        self._streams = streams
        self._rows = rows
        self.start = start_token(tokenizer)
        recovers = rows is Rows.recovered
        self._recovery = Recovery.fit(model, tokenizer, self.start) if recovers else None

    def fit(
        self, ngrams: NGrams, tokenizer: PreTrainedTokenizerBase, texts: Sequence[ReadText]
    ) -> NewRows:
        """Return rows for `ngrams`.

        Parameters
        ----------
        tokenizer : PreTrainedTokenizerBase
            The tokenizer extended by `ngrams`.
        """
        embedding: Any = self._model.get_input_embeddings()
        head: Any = self._model.get_output_embeddings()
        kind = Rows.exponential if self._rows in FITTED else self._rows
        rows = NewRows(
            input=combined(embedding.weight, ngrams, weights(ngrams, kind, head=False)),
            head=combined(head.weight, ngrams, weights(ngrams, kind, head=True)),
            changed=torch.empty(0, dtype=torch.int64),
            changed_head=torch.empty(0, head.weight.shape[1]),
        )
        if self._recovery:
            return replace(rows, input=self._recovery(ngrams.pieces))
        if self._rows not in FITTED:
            return rows
        passages = [Passage.of(text.text, tokenizer, ngrams) for text in texts]
        new_input = match_hidden(self._model, rows.input, passages, self.start)
        targets = self._targets(ngrams, passages, texts)
        evidence = self._evidence(new_input, passages, targets)
        new_head, changed_head = fit_head(head.weight, ngrams, evidence)
        rows = NewRows(new_input, new_head, targets.trie.firsts, changed_head)
        if self._rows is Rows.distilled:
            readings = [text.reading for text in texts]
            rows = distill(self._model, rows, passages, readings, targets, self.start)
        return rows

    def _targets(
        self, ngrams: NGrams, passages: Sequence[Passage], texts: Sequence[ReadText]
    ) -> Targets:
        trie = Trie(ngrams)
        lessons = [
            Lesson.of(self._model, passage, text.reading, trie)
            for passage, text in zip(passages, texts, strict=True)
        ]
        return Targets.of(passages, lessons, trie, trie.conditionals(trie.counts(self._streams)))

    def _evidence(
        self, new_input: Tensor, passages: Sequence[Passage], targets: Targets
    ) -> Evidence:
        """Read the merged tokens with the new input rows in place."""
        head: Any = self._model.get_output_embeddings()
        nothing = new_input[:0]
        rows = NewRows(new_input, nothing, torch.empty(0, dtype=torch.int64), nothing)
        firsts, device = targets.trie.firsts, head.weight.device
        hidden, rest = [], []
        with extended(self._model, rows, output=False):
            for passage in track(passages, "Reading n-grams", len(passages)):
                logits, states = predict(self._model, passage.merged, self.start)
                logits[:, firsts.to(logits.device)] = -torch.inf
                hidden.append(states.to(device))
                rest.append(logits.logsumexp(-1).to(device))
        return Evidence(torch.cat(hidden), torch.cat(rest), targets, soft_cap(self._model))
