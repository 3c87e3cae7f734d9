"""New rows for a set of n-grams, of the kind that is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trimtab import shards
from trimtab.adaptivocab.ngrams import NGrams
from trimtab.adaptivocab.rows.combination import combined, weights
from trimtab.adaptivocab.rows.extended import NewRows, extended
from trimtab.adaptivocab.rows.gradient import distill, match_hidden_states
from trimtab.adaptivocab.rows.head import HeadFeatures, fit_head
from trimtab.adaptivocab.rows.passages import Passage
from trimtab.adaptivocab.rows.recovery import Recovery
from trimtab.adaptivocab.rows.scoring import HiddenStates, ScoredText, predict
from trimtab.adaptivocab.rows.targets import DistillationTargets, PassageTargets
from trimtab.adaptivocab.rows.trie import Trie
from trimtab.adaptivocab.settings import Rows
from trimtab.adaptivocab.tokenizer.extender import TokenizerExtender
from trimtab.corpus import start_token
from trimtab.errors import MisfitError
from trimtab.models.decode_parts import HasLinearPart
from trimtab.models.facts import final_softcap

ON_TEXT = (Rows.fitted, Rows.distilled)  # fitted on texts, by gradient and L-BFGS
FROM_EXPONENTIAL = (*ON_TEXT, Rows.recovered)  # begin with the paper's rows


def require_gradients(model: PreTrainedModel, rows: Rows) -> None:
    """Raise `MisfitError` where rows are asked for that take gradients, of a model without any."""
    if rows in ON_TEXT and any(isinstance(module, HasLinearPart) for module in model.modules()):
        raise MisfitError(
            f"adaptivocab.rows={rows} is fitted by gradients, and the operators of a sparse model "
            "have none: use adaptivocab.rows=mean, adaptivocab.rows=exponential or "
            "adaptivocab.mode=draft, or calibrate on the original and put LaRoSA on top"
        )


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
    """Makes rows for any set of n-grams.

    Parameters
    ----------
    model : PreTrainedModel
        The base model; it is left as it is.
    extender : TokenizerExtender
        Of the base tokenizer.
    texts : sequence of sequence of int
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
        extender: TokenizerExtender,
        texts: Sequence[Sequence[int]],
        rows: Rows,
        *,
        output: bool,
    ) -> None:
        self._model = model
        self._extender = extender
        self._texts = texts
        self._rows = rows
        self.output = output
        self.start = start_token(extender.tokenizer)
        self._recovery = None
        if rows is Rows.recovered:
            self._recovery = Recovery.fit(model, extender.tokenizer, self.start)

    def extend(self, ngrams: NGrams, texts: Sequence[ScoredText]) -> Extension:
        """Return `ngrams` with their tokenizer and their rows.

        Parameters
        ----------
        texts : sequence of ScoredText
            What rows are fitted on; used only by the kinds in `ON_TEXT`.
        """
        tokenizer = self._extender.build(ngrams)
        passages = [Passage.of(text.text, tokenizer, ngrams) for text in texts]
        rows = self._fit(ngrams, passages, [text.states for text in texts])
        if not self.output:
            rows = NewRows.of_input(rows.input)
        # Processes that share a calibration have all fitted them, maybe on machines that differ.
        own = rows.to_tensors()
        first = shards.shared(own)
        rows = NewRows(**{name: part.to(own[name].device) for name, part in first.items()})
        return Extension(ngrams, rows, tokenizer)

    def _fit(
        self, ngrams: NGrams, passages: Sequence[Passage], states: Sequence[HiddenStates]
    ) -> NewRows:
        embedding: Any = self._model.get_input_embeddings()
        head: Any = self._model.get_output_embeddings()
        kind = Rows.exponential if self._rows in FROM_EXPONENTIAL else self._rows
        new_input = combined(embedding.weight, ngrams, weights(ngrams, kind, head=False))
        if self._recovery:
            new_input = self._recovery(ngrams.tokens)
        if self._rows not in ON_TEXT:
            new_head = combined(head.weight, ngrams, weights(ngrams, kind, head=True))
            return replace(NewRows.of_input(new_input), head=new_head)
        new_input = match_hidden_states(self._model, new_input, passages, self.start)
        if self._rows is Rows.fitted and not self.output:
            return NewRows.of_input(new_input)
        targets = self._targets(ngrams, passages, states)
        features = self._features(new_input, passages, targets)
        new_head, changed_head = fit_head(head.weight, ngrams, features)
        rows = NewRows(new_input, new_head, targets.trie.firsts, changed_head)
        if self._rows is Rows.distilled:
            rows = distill(self._model, rows, passages, states, targets, self.start)
        return rows

    def _targets(
        self, ngrams: NGrams, passages: Sequence[Passage], states: Sequence[HiddenStates]
    ) -> DistillationTargets:
        trie = Trie(ngrams)
        targets = [
            PassageTargets.of(self._model, passage, one, trie)
            for passage, one in zip(passages, states, strict=True)
        ]
        counted = trie.conditionals(trie.counts(self._texts))
        return DistillationTargets.of(passages, targets, trie, counted)

    def _features(
        self, new_input: Tensor, passages: Sequence[Passage], targets: DistillationTargets
    ) -> HeadFeatures:
        """Run the model over merged tokens with the new input rows in place."""
        head: Any = self._model.get_output_embeddings()
        rows = NewRows.of_input(new_input)
        firsts, device = targets.trie.firsts, head.weight.device

        def run(passage: Passage) -> dict[str, Tensor]:
            logits, states = predict(self._model, passage.merged, self.start)
            logits[:, firsts.to(logits.device)] = -torch.inf
            return {"hidden": states, "rest": logits.logsumexp(-1)}

        with extended(self._model, rows, output=False):
            found = shards.each(passages, run, "Hidden states of n-grams")
        hidden, rest = (
            torch.cat([one[name] for one in found]).to(device) for name in ("hidden", "rest")
        )
        softcap = final_softcap(self._model.config)
        return HeadFeatures(hidden, rest, targets, softcap)
