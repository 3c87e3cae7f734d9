"""Which n-grams may be merged: those whose saving costs least, as far as the guard allows."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from trimtab.adaptivocab.ngrams import NGrams
from trimtab.adaptivocab.rows.extended import NewRows, extended
from trimtab.adaptivocab.rows.fit import ReadText
from trimtab.adaptivocab.rows.passages import Passage
from trimtab.adaptivocab.rows.targets import read
from trimtab.progress import track

REACH = 8  # merged tokens behind an n-gram that it may have made harder to predict
PRIOR = 4.0  # occurrences that the average n-gram's cost weighs
SHARES = (1 / 1024, 1 / 256, 1 / 64, 1 / 16, 1 / 4, 1)  # of the n-grams: the dial's positions


@dataclass(frozen=True)
class Point:
    """One position of the dial, measured on validation text.

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

    @property
    def increase(self) -> float:
        return self.bits_per_byte / self.base_bits_per_byte - 1

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "increase": self.increase}


@dataclass(frozen=True)
class Scored:
    """Passages as the extended model predicts them, beside the base model's.

    Attributes
    ----------
    passages : list of Passage
    nats, base_nats : list of Tensor
        For each merged token, float64 of shape [merged tokens]: what it costs, and what its base
        tokens cost the base model together.
    output : bool
        Whether n-grams are predicted too, or read alone. Then the base head predicts the first
        base token of each merged one, and the others cost what they cost the base model.
    """

    passages: list[Passage]
    nats: list[Tensor]
    base_nats: list[Tensor]
    output: bool

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        rows: NewRows,
        passages: Sequence[Passage],
        texts: Sequence[ReadText],
        start: int | None,
        *,
        output: bool,
    ) -> Scored:
        """Read passages with the extended model; `texts` hold the base model's reading."""
        nats, base = [], []
        with extended(model, rows, output=output):
            for passage in track(passages, "Reading with n-grams", len(passages)):
                asked = passage.merged if output else passage.base[passage.starts]
                nats.append(read(model, passage.merged, start, asked).nats)
        for number, (passage, text) in enumerate(zip(passages, texts, strict=True)):
            upto = torch.cat([text.reading.nats.new_zeros(1), text.reading.nats.cumsum(0)])
            base.append(upto[passage.ends] - upto[passage.starts])
            if not output:
                nats[number] += upto[passage.ends] - upto[passage.starts + 1]
        return cls(list(passages), nats, base, output)

    def point(self, ngrams: int) -> Point:
        size = sum(passage.size for passage in self.passages)
        merged = sum(len(passage.merged) for passage in self.passages)
        tokens = sum(len(passage.base) for passage in self.passages)
        bits = [float(sum(part.sum() for part in nats)) / math.log(2) / size
                for nats in (self.nats, self.base_nats)]  # fmt: skip
        return Point(ngrams, 1 - merged / tokens, *bits)


def costs(scored: Scored, ngrams: NGrams) -> list[float]:
    """Return the nats that each n-gram costs per token it saves.

    What a merged token costs beyond its base tokens is blamed on the token itself if it is an
    n-gram that was predicted, and otherwise on the n-grams among the `REACH` tokens before it, in
    equal parts.
    N-grams that are rare in the text are drawn towards the average.
    """
    blame: dict[int, float] = defaultdict(float)
    seen: dict[int, int] = defaultdict(int)
    for passage, nats, base in zip(scored.passages, scored.nats, scored.base_nats, strict=True):
        recent: list[tuple[int, int]] = []
        excess = (nats - base).tolist()
        for position, (token, cost) in enumerate(zip(passage.merged.tolist(), excess, strict=True)):
            recent = [(place, one) for place, one in recent if position - place <= REACH]
            new = token >= ngrams.base_size
            if new and scored.output:
                blame[token - ngrams.base_size] += cost
            else:
                for _, one in recent:
                    blame[one] += cost / len(recent)
            if new:
                recent.append((position, token - ngrams.base_size))
                seen[token - ngrams.base_size] += 1
    saved = sum(count * (len(ngrams.pieces[one]) - 1) for one, count in seen.items())
    average = sum(blame.values()) / max(saved, 1)
    return [
        (blame[one] / (len(pieces) - 1) + PRIOR * average) / (seen[one] + PRIOR)
        for one, pieces in enumerate(ngrams.pieces)
    ]


def order_by_cost(ngrams: NGrams, cost: Sequence[float]) -> list[int]:
    """Return the n-grams' numbers, cheapest first, but each behind its own prefixes."""
    numbers = {pieces: number for number, pieces in enumerate(ngrams.pieces)}
    order: dict[int, None] = {}
    for number in sorted(range(len(ngrams)), key=lambda number: (cost[number], number)):
        pieces = ngrams.pieces[number]
        for end in range(2, len(pieces) + 1):
            if pieces[:end] in numbers:
                order.setdefault(numbers[pieces[:end]])
    return list(order)


def positions(count: int) -> list[int]:
    """Return how many of `count` n-grams are merged at each of the dial's positions, ascending."""
    return sorted({max(round(share * count), 1) for share in SHARES})
