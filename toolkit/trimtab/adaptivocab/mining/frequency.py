"""The paper's selection: n-grams by frequency times saving (arXiv 2503.19693, section 3.1)."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Iterator

from trimtab.adaptivocab.mining.texts import LEAST, Admissible, Mined, TokenizedText

Place = tuple[int, int]  # number of the text, position of the first token
Key = tuple[tuple[int, ...], bool]  # base tokens, whether across pre-tokens
Entry = tuple[int, Key]  # minus the tokens saved, when last counted


class FrequencySelection:
    """Take the n-gram that saves most, then count again without the text it covers.

    Parameters
    ----------
    texts : iterable of TokenizedText
    max_ngram : int
        Most base tokens of an n-gram.
    admissible : callable
        Whether an n-gram of these base tokens, within a pre-token or across, may be a token.
    aligned : bool
        Whether an n-gram must lie within a pre-token or be made of whole ones. One within a
        pre-token is taken only after the n-gram of all its tokens but the last.
    """

    def __init__(
        self,
        texts: Iterable[TokenizedText],
        max_ngram: int,
        admissible: Admissible,
        aligned: bool,
    ) -> None:
        self._texts = list(texts)
        self._admissible = admissible
        self._aligned = aligned
        self._taken = [bytearray(len(text.tokens)) for text in self._texts]
        found: dict[Key, list[Place]] = defaultdict(list)
        for number, text in enumerate(self._texts):
            for start in range(len(text.tokens)):
                for length in range(2, min(max_ngram, len(text.tokens) - start) + 1):
                    across = self._across(text, start, start + length)
                    if across is not None:
                        ngram = tuple(text.tokens[start : start + length])
                        found[ngram, across].append((number, start))
        self._places = {key: places for key, places in found.items() if len(places) >= LEAST}

    def _across(self, text: TokenizedText, start: int, end: int) -> bool | None:
        """Return whether a stretch crosses pre-tokens, None where it may not be an n-gram."""
        own = text.pre_tokens
        if not self._aligned or own[start] == own[end - 1]:
            return False
        cut = start > 0 and own[start - 1] == own[start]
        cut |= end < len(own) and own[end - 1] == own[end]
        return None if cut else True

    def run(self, size: int) -> Mined:
        """Return at most `size` n-grams, fewer once none occurs twice."""
        mined = Mined([], [], sum(len(text.tokens) for text in self._texts))
        chosen: set[tuple[int, ...]] = set()
        waiting: dict[tuple[int, ...], list[Entry]] = defaultdict(list)
        heap: list[Entry] = [
            (-len(places) * (len(key[0]) - 1), key) for key, places in self._places.items()
        ]
        heapq.heapify(heap)
        while heap and len(mined.ngrams) < size:
            gain, key = heapq.heappop(heap)
            ngram, across = key
            if ngram in chosen or not self._admissible(ngram, across):
                continue
            if not across and len(ngram) > 2 and ngram[:-1] not in chosen:
                waiting[ngram[:-1]].append((gain, key))
                continue
            places = list(self._free(key))
            recounted = -len(places) * (len(ngram) - 1)
            if len(places) < LEAST:
                continue
            if recounted > gain:
                heapq.heappush(heap, (recounted, key))
                continue
            for number, start in places:
                self._taken[number][start : start + len(ngram)] = b"\1" * len(ngram)
            chosen.add(ngram)
            mined.ngrams.append(ngram)
            mined.saved.append(-recounted)
            for entry in waiting.pop(ngram, ()):
                heapq.heappush(heap, entry)
        return mined

    def _free(self, key: Key) -> Iterator[Place]:
        """Yield where the n-gram occurs in text that none covers yet, without overlap."""
        length = len(key[0])
        earliest = (-1, -1)
        for number, start in self._places[key]:
            if (number, start) >= earliest and not any(self._taken[number][start : start + length]):
                earliest = number, start + length
                yield number, start
