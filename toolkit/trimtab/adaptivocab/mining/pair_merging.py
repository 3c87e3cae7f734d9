"""Pair merging: n-grams grown from the left, one base token at a time."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from itertools import pairwise

import numpy as np

from trimtab.adaptivocab.mining.texts import LEAST, Admissible, Mined, TokenizedText

BOUNDARY = -1  # the unit before and after every text
Pair = tuple[int, int, bool]  # unit on the left, base token on the right, whether across pre-tokens


class PairMerging:
    """Byte-pair encoding whose symbols are base tokens instead of bytes.

    The most frequent pair of a unit (an n-gram or a base token) and a base token becomes an
    n-gram. Its occurrences are replaced, and the counts of the pairs around them are updated, so
    that every count is of the text as the n-grams chosen so far encode it. All n-grams grow from
    the left by one token, so every prefix of an n-gram is an n-gram too.

    Parameters
    ----------
    texts : iterable of TokenizedText
    max_ngram : int
        Most base tokens of an n-gram.
    admissible : callable
        Whether an n-gram of these base tokens, within a pre-token or across, may be a token.
    aligned : bool
        Whether an n-gram must lie within a pre-token or be made of whole ones.
    """

    def __init__(
        self,
        texts: Iterable[TokenizedText],
        max_ngram: int,
        admissible: Admissible,
        aligned: bool,
    ) -> None:
        self._max_ngram = max_ngram
        self._admissible = admissible
        self._load(texts, aligned)
        self._ngrams: dict[int, tuple[int, ...]] = {}
        self._count_pairs()

    def _load(self, texts: Iterable[TokenizedText], aligned: bool) -> None:
        units, first, last = [BOUNDARY], [True], [True]
        for text in filter(lambda text: text.tokens, texts):
            own = text.pre_tokens if aligned else [0] * len(text.pre_tokens)
            changes = [left != right for left, right in pairwise(own)]
            units += [*text.tokens, BOUNDARY]
            first += [True, *changes, True]
            last += [*changes, True, True]
        self.tokens = len(units) - units.count(BOUNDARY)
        self._units = units
        self._first, self._last = first, last  # of its pre-token, for every position
        self._next = list(range(1, len(units) + 1))
        self._previous = list(range(-1, len(units) - 1))
        self._base_size = max(units) + 1

    def _count_pairs(self) -> None:
        """Index all pairs of the text: positions by pair, and a heap of counts."""
        self._counts: dict[Pair, int] = {}
        self._positions: dict[Pair, list[int]] = {}
        units = np.array(self._units, dtype=np.int64)
        first, last = np.array(self._first), np.array(self._last)
        crosses = first[1:]
        possible = (units[:-1] != BOUNDARY) & (units[1:] != BOUNDARY)
        possible &= ~crosses | (first[:-1] & last[1:])
        (where,) = possible.nonzero()
        keys = (units[where] * self._base_size + units[where + 1]) * 2 + crosses[where]
        places = where[np.argsort(keys, kind="stable")]
        end = 0
        for key, count in zip(*(x.tolist() for x in np.unique_counts(keys)), strict=True):
            end += count
            if count >= LEAST:
                rest, across = divmod(key, 2)
                pair = (*divmod(rest, self._base_size), bool(across))
                self._positions[pair] = places[end - count : end].tolist()
                self._counts[pair] = count
        self._heap = [(-count, pair) for pair, count in self._counts.items()]
        heapq.heapify(self._heap)

    def run(self, size: int) -> Mined:
        """Return at most `size` n-grams, fewer once no pair occurs twice."""
        mined = Mined([], [], self.tokens)
        chosen: set[tuple[int, ...]] = set()
        while self._heap and len(mined.ngrams) < size:
            count, pair = heapq.heappop(self._heap)
            if -count != self._counts.get(pair, 0):
                continue  # out of date: the pair has another entry with its present count
            ngram = (*self._expanded(pair[0]), pair[1])
            unusable = len(ngram) > self._max_ngram or ngram in chosen
            if unusable or not self._admissible(ngram, pair[2]):
                del self._counts[pair], self._positions[pair]
                continue
            places = list(self._occurrences(pair))
            if len(places) < -count:  # a run, see `_merge`
                self._recount(pair, len(places))
                continue
            chosen.add(ngram)
            unit = self._base_size + len(mined.ngrams)
            self._ngrams[unit] = ngram
            mined.ngrams.append(ngram)
            mined.saved.append(len(places))
            self._merge(pair, unit, places)
        return mined

    def _expanded(self, unit: int) -> tuple[int, ...]:
        return self._ngrams.get(unit, (unit,))

    def _occurrences(self, pair: Pair) -> Iterator[int]:
        """Yield where the pair occurs, left to right, without overlap."""
        left, right, _ = pair
        taken = -1
        for place in sorted(self._positions[pair]):
            after = self._next[place]
            if place != taken and (self._units[place], self._units[after]) == (left, right):
                taken = after
                yield place

    def _merge(self, pair: Pair, unit: int, places: list[int]) -> None:
        """Replace the pair's occurrences, and update the counts of their neighbours.

        In a run such as "a a a" the pairs overlap, and their number is only an upper bound of how
        many can be merged. Such a pair is counted exactly when its turn comes.
        """
        changed: set[Pair] = set()
        for place in places:
            after = self._next[place]
            before, beyond = self._previous[place], self._next[after]
            for left, right in ((before, place), (place, after), (after, beyond)):
                old = self._pair(left, right)
                if old in self._counts and old[0] != old[1]:
                    self._counts[old] -= 1
                    changed.add(old)
            self._units[place] = unit
            self._units[after] = BOUNDARY
            self._next[place] = beyond
            self._previous[beyond] = place
            new = self._pair(place, beyond)
            if new is not None:
                self._counts[new] = self._counts.get(new, 0) + 1
                self._positions.setdefault(new, []).append(place)
                changed.add(new)
        changed.discard(pair)
        self._counts.pop(pair, None)
        self._positions.pop(pair, None)
        for other in changed:
            self._recount(other, self._counts[other])

    def _pair(self, left: int, right: int) -> Pair | None:
        """Return what two neighbouring positions would merge into, None where they may not."""
        first, second = self._units[left], self._units[right]
        if BOUNDARY in (first, second) or second >= self._base_size:
            return None
        crosses = self._first[right]
        if crosses and not (self._first[left] and self._last[right]):
            return None
        return first, second, crosses

    def _recount(self, pair: Pair, count: int) -> None:
        if count < LEAST:
            self._counts.pop(pair, None)
            self._positions.pop(pair, None)
        else:
            self._counts[pair] = count
            heapq.heappush(self._heap, (-count, pair))
