"""The paper's selection: n-grams by frequency times saving (arXiv 2503.19693, section 3.1)."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Iterator

from trimtab.adaptivocab.mining.texts import LEAST, Admissible, Mined, Stream

Place = tuple[int, int]  # number of the stream, first token
Key = tuple[tuple[int, ...], bool]  # pieces, across pre-tokens
Entry = tuple[int, Key]  # minus the tokens saved, when last looked at


class FrequencySelection:
    """Take the n-gram that saves most, then count again without the text it covers.

    Parameters
    ----------
    streams : iterable of Stream
    max_ngram : int
        Most base tokens of an n-gram.
    admissible : callable
        Whether an n-gram of these base tokens, within a pre-token or across, may be a token.
    aligned : bool
        Whether an n-gram must lie within a pre-token or be made of whole ones. One within a
        pre-token is taken only after the one of all its pieces but the last.
    """

    def __init__(
        self,
        streams: Iterable[Stream],
        max_ngram: int,
        admissible: Admissible,
        aligned: bool,
    ) -> None:
        self._streams = list(streams)
        self._admissible = admissible
        self._aligned = aligned
        self._taken = [bytearray(len(stream.tokens)) for stream in self._streams]
        found: dict[Key, list[Place]] = defaultdict(list)
        for number, stream in enumerate(self._streams):
            for start in range(len(stream.tokens)):
                for length in range(2, min(max_ngram, len(stream.tokens) - start) + 1):
                    across = self._across(stream, start, start + length)
                    if across is not None:
                        pieces = tuple(stream.tokens[start : start + length])
                        found[pieces, across].append((number, start))
        self._places = {key: places for key, places in found.items() if len(places) >= LEAST}

    def _across(self, stream: Stream, start: int, end: int) -> bool | None:
        """Return whether a stretch crosses pre-tokens, None where it may be no n-gram."""
        words = stream.words
        if not self._aligned or words[start] == words[end - 1]:
            return False
        cut = start > 0 and words[start - 1] == words[start]
        cut |= end < len(words) and words[end - 1] == words[end]
        return None if cut else True

    def run(self, size: int) -> Mined:
        """Return at most `size` n-grams, fewer where none occurs twice any more."""
        mined = Mined([], [], sum(len(stream.tokens) for stream in self._streams))
        chosen: set[tuple[int, ...]] = set()
        waiting: dict[tuple[int, ...], list[Entry]] = defaultdict(list)
        heap: list[Entry] = [
            (-len(places) * (len(key[0]) - 1), key) for key, places in self._places.items()
        ]
        heapq.heapify(heap)
        while heap and len(mined.pieces) < size:
            gain, key = heapq.heappop(heap)
            pieces, across = key
            if pieces in chosen or not self._admissible(pieces, across):
                continue
            if not across and len(pieces) > 2 and pieces[:-1] not in chosen:
                waiting[pieces[:-1]].append((gain, key))
                continue
            places = list(self._free(key))
            now = -len(places) * (len(pieces) - 1)
            if len(places) < LEAST:
                continue
            if now > gain:
                heapq.heappush(heap, (now, key))
                continue
            for number, start in places:
                self._taken[number][start : start + len(pieces)] = b"\1" * len(pieces)
            chosen.add(pieces)
            mined.pieces.append(pieces)
            mined.saved.append(-now)
            for entry in waiting.pop(pieces, ()):
                heapq.heappush(heap, entry)
        return mined

    def _free(self, key: Key) -> Iterator[Place]:
        """Yield where the n-gram stands in text that none covers yet, without overlap."""
        length = len(key[0])
        behind = (-1, -1)
        for number, start in self._places[key]:
            if (number, start) >= behind and not any(self._taken[number][start : start + length]):
                behind = number, start + length
                yield number, start
