"""The guard: how many n-grams, the least costly first, validation text lets through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedModel

from trimtab.adaptivocab.ngrams import NGrams
from trimtab.adaptivocab.quality_budget import Point, Scored, costs, order_by_cost, positions
from trimtab.adaptivocab.rows.fit import Extension, ReadText, RowFitter
from trimtab.adaptivocab.rows.passages import Passage
from trimtab.progress import say


class Guard:
    """Merges n-grams as long as bits per byte of validation text rise no more than a limit.

    Parameters
    ----------
    model : PreTrainedModel
    fitter : RowFitter
    held_out : sequence of ReadText
        The validation text.
    limit : float
        Most that bits per byte may rise, relative to the base model.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        fitter: RowFitter,
        held_out: Sequence[ReadText],
        limit: float,
    ) -> None:
        self._model = model
        self._fitter = fitter
        self._held_out = held_out
        self._limit = limit

    def turn_dial(self, ngrams: NGrams, texts: Sequence[ReadText]) -> dict[str, Any]:
        """Return what n-grams cost, their order by that, and bits per byte along it.

        Parameters
        ----------
        texts : sequence of ReadText
            What rows are fitted on, once for every position of the dial.

        Returns
        -------
        dict
            JSON values: `cost_nats_per_saved_token`, `order` and `dial`, ascending points.
        """
        everything = self._measure(ngrams, texts)[1]
        cost = costs(everything, ngrams)
        order = order_by_cost(ngrams, cost)
        dial = []
        for count in positions(len(ngrams)):
            scored = everything
            if count < len(ngrams):
                scored = self._measure(ngrams.subset(order[:count]), texts)[1]
            dial.append(_said(scored.point(count), "n-grams").to_json())
        return {"cost_nats_per_saved_token": cost, "order": order, "dial": dial}

    def merge(
        self, ngrams: NGrams, turned: Mapping[str, Any], texts: Sequence[ReadText]
    ) -> tuple[Extension | None, list[dict[str, Any]]]:
        """Fit the rows of as many n-grams as the limit allows, and measure once more with these.

        Where rows that are fitted on all texts cost more than those of the dial did, the next
        lower position is taken.

        Parameters
        ----------
        turned : mapping
            From `turn_dial`.
        texts : sequence of ReadText
            What rows are fitted on.

        Returns
        -------
        extension : Extension or None
            None where no n-gram is let through.
        points : list of dict
            What was measured on the way, as the points of the dial.
        """
        allowed = [one["ngrams"] for one in turned["dial"] if one["increase"] <= self._limit]
        points: list[dict[str, Any]] = []
        for count in reversed(allowed):
            subset = ngrams.subset(turned["order"][:count])
            extension, scored = self._measure(subset, texts)
            point = _said(scored.point(count), "n-grams with the rows they get")
            points.append(point.to_json())
            if point.increase <= self._limit:
                self._say_kept(count, ngrams)
                return extension, points
        self._say_kept(0, ngrams)
        return None, points

    def _measure(self, ngrams: NGrams, texts: Sequence[ReadText]) -> tuple[Extension, Scored]:
        extension = self._fitter.extend(ngrams, texts)
        passages = [Passage.of(text.text, extension.tokenizer, ngrams) for text in self._held_out]
        return extension, Scored.of(
            self._model,
            extension.rows,
            passages,
            self._held_out,
            self._fitter.start,
            output=self._fitter.output,
        )

    def _say_kept(self, count: int, ngrams: NGrams) -> None:
        say(f"The guard of {self._limit:+.2%} lets {count} of {len(ngrams)} n-grams through")


def _said(point: Point, what: str) -> Point:
    say(
        f"{point.ngrams} {what}: {point.saving:.1%} fewer tokens of validation text, bits per "
        f"byte {point.increase:+.2%}"
    )
    return point
