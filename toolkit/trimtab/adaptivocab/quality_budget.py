"""The quality budget: how many n-grams, the least costly first, may become tokens.

An *operating point* is a number of n-grams with what it saves and what it costs on validation text.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel
from typing_extensions import TypedDict  # pydantic reads no other before Python 3.12

from trimtab.adaptivocab.ngrams import NGrams
from trimtab.adaptivocab.rows.fit import Extension, RowFitter
from trimtab.adaptivocab.rows.passages import Passage
from trimtab.adaptivocab.rows.scoring import ScoredPassages, ScoredText
from trimtab.progress import say

REACH = 8  # merged tokens after an n-gram that it may have made harder to predict
PRIOR = 4.0  # occurrences that the average n-gram's cost weighs
SHARES = (1 / 1024, 1 / 256, 1 / 64, 1 / 16, 1 / 4, 1)  # of the n-grams, one operating point each


class MeasuredPoint(TypedDict):
    """An `OperatingPoint` in JSON."""

    ngrams: int
    saving: float
    bits_per_byte: float
    base_bits_per_byte: float
    increase: float


@dataclass(frozen=True)
class OperatingPoint:
    """What merging some n-grams saves and costs.

    Attributes
    ----------
    ngrams : int
        N-grams merged, the least costly ones.
    saving : float
        Share of the base tokens saved.
    bits_per_byte, base_bits_per_byte : float
    increase : float
        Relative rise of bits per byte.
    """

    ngrams: int
    saving: float
    bits_per_byte: float
    base_bits_per_byte: float

    @classmethod
    def of(cls, ngrams: int, scored: ScoredPassages) -> OperatingPoint:
        return cls(ngrams, scored.saving, scored.bits_per_byte, scored.base_bits_per_byte)

    @property
    def increase(self) -> float:
        return self.bits_per_byte / self.base_bits_per_byte - 1

    def to_json(self) -> MeasuredPoint:
        return {
            "ngrams": self.ngrams,
            "saving": self.saving,
            "bits_per_byte": self.bits_per_byte,
            "base_bits_per_byte": self.base_bits_per_byte,
            "increase": self.increase,
        }


def operating_counts(count: int) -> list[int]:
    """Return how many of `count` n-grams are merged at each operating point, ascending."""
    return sorted({max(round(share * count), 1) for share in SHARES})


def costs(scored: ScoredPassages, ngrams: NGrams) -> list[float]:
    """Return the nats that each n-gram costs per token it saves.

    What a merged token costs beyond its base tokens is charged to the token itself if it is an
    n-gram that was predicted, and otherwise, in equal parts, to the n-grams among the `REACH`
    tokens before it. The costs of n-grams that are rare in the text are drawn towards the average.
    """
    charged: dict[int, float] = defaultdict(float)
    seen: dict[int, int] = defaultdict(int)
    for passage, nats, base in zip(scored.passages, scored.nats, scored.base_nats, strict=True):
        recent: list[tuple[int, int]] = []
        excess = (nats - base).tolist()
        for position, (token, cost) in enumerate(zip(passage.merged.tolist(), excess, strict=True)):
            recent = [(place, one) for place, one in recent if position - place <= REACH]
            new = token >= ngrams.base_size
            if new and scored.output:
                charged[token - ngrams.base_size] += cost
            else:
                for _, one in recent:
                    charged[one] += cost / len(recent)
            if new:
                recent.append((position, token - ngrams.base_size))
                seen[token - ngrams.base_size] += 1
    saved = sum(count * (len(ngrams.tokens[one]) - 1) for one, count in seen.items())
    average = sum(charged.values()) / max(saved, 1)
    return [
        (charged[one] / (len(ngram) - 1) + PRIOR * average) / (seen[one] + PRIOR)
        for one, ngram in enumerate(ngrams.tokens)
    ]


def order_by_cost(ngrams: NGrams, cost: Sequence[float]) -> list[int]:
    """Return the n-grams' numbers, the cheapest first, but each after its own prefixes."""
    numbers = {ngram: number for number, ngram in enumerate(ngrams.tokens)}
    order: dict[int, None] = {}
    for number in sorted(range(len(ngrams)), key=lambda number: (cost[number], number)):
        ngram = ngrams.tokens[number]
        for end in range(2, len(ngram) + 1):
            if ngram[:end] in numbers:
                order.setdefault(numbers[ngram[:end]])
    return list(order)


class QualityBudget:
    """Merges n-grams as long as bits per byte of validation text rise no more than a limit.

    Parameters
    ----------
    model : PreTrainedModel
    fitter : RowFitter
    held_out : sequence of ScoredText
        The validation text.
    limit : float
        Most that bits per byte may rise, relative to the base model.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        fitter: RowFitter,
        held_out: Sequence[ScoredText],
        limit: float,
    ) -> None:
        self._model = model
        self._fitter = fitter
        self._held_out = held_out
        self._limit = limit

    def measure(self, ngrams: NGrams, texts: Sequence[ScoredText]) -> dict[str, Any]:
        """Return what n-grams cost, their order by that, and the operating points along it.

        Parameters
        ----------
        texts : sequence of ScoredText
            What rows are fitted on, anew for every operating point.

        Returns
        -------
        dict
            JSON values: `cost_nats_per_saved_token`, `order` and `operating_points`, ascending.
        """
        everything = self._score(ngrams, texts)[1]
        cost = costs(everything, ngrams)
        order = order_by_cost(ngrams, cost)
        points = []
        for count in operating_counts(len(ngrams)):
            scored = everything
            if count < len(ngrams):
                scored = self._score(ngrams.subset(order[:count]), texts)[1]
            points.append(_said(OperatingPoint.of(count, scored), "n-grams").to_json())
        return {"cost_nats_per_saved_token": cost, "order": order, "operating_points": points}

    def merge(
        self, ngrams: NGrams, measured: Mapping[str, Any], texts: Sequence[ScoredText]
    ) -> tuple[Extension | None, list[MeasuredPoint]]:
        """Fit the rows of as many n-grams as the limit allows, and measure again with these.

        Where rows fitted on all texts cost more than those of the operating point did, and more
        than the limit, the next lower operating point is taken.

        Parameters
        ----------
        measured : mapping
            From `measure`.
        texts : sequence of ScoredText
            What rows are fitted on.

        Returns
        -------
        extension : Extension or None
            None where the limit allows no n-gram.
        points : list of MeasuredPoint
            What was measured on the way, as operating points.
        """
        points = measured["operating_points"]
        allowed = [point["ngrams"] for point in points if point["increase"] <= self._limit]
        tried: list[MeasuredPoint] = []
        for count in reversed(allowed):
            subset = ngrams.subset(measured["order"][:count])
            extension, scored = self._score(subset, texts)
            point = _said(OperatingPoint.of(count, scored), "n-grams with their final rows")
            tried.append(point.to_json())
            if point.increase <= self._limit:
                self._say_kept(count, ngrams)
                return extension, tried
        self._say_kept(0, ngrams)
        return None, tried

    def _score(
        self, ngrams: NGrams, texts: Sequence[ScoredText]
    ) -> tuple[Extension, ScoredPassages]:
        extension = self._fitter.extend(ngrams, texts)
        passages = [Passage.of(text.text, extension.tokenizer, ngrams) for text in self._held_out]
        return extension, ScoredPassages.of(
            self._model,
            extension.rows,
            passages,
            self._held_out,
            self._fitter.start,
            output=self._fitter.output,
        )

    def _say_kept(self, count: int, ngrams: NGrams) -> None:
        say(f"{count} of {len(ngrams)} n-grams are within the quality budget of {self._limit:+.2%}")


def _said(point: OperatingPoint, what: str) -> OperatingPoint:
    say(
        f"{point.ngrams} {what}: {point.saving:.1%} fewer tokens of validation text, bits per "
        f"byte {point.increase:+.2%}"
    )
    return point
