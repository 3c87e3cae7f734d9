from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.adaptivocab.tokenizers import DOCUMENTS, base, extender
from trimtab.adaptivocab.mining.frequency import FrequencySelection
from trimtab.adaptivocab.mining.pair_merging import PairMerging
from trimtab.adaptivocab.mining.texts import Mined, TokenizedText, tokenize, up_to
from trimtab.corpus import Document

METHODS = [PairMerging, FrequencySelection]
each = pytest.mark.parametrize("method", METHODS)


def anything(ngram, crosses) -> bool:
    return True


def some(ngram, crosses) -> bool:
    """Admit an n-gram everywhere, nowhere, or only within a word or only across words."""
    return bool((sum(ngram) + len(ngram) + 1) % 4 >> crosses & 1)


def text_of(*words: list[int]) -> TokenizedText:
    numbers = [number for number, word in enumerate(words) for _ in word]
    return TokenizedText([token for word in words for token in word], numbers)


@st.composite
def texts(draw: st.DrawFn) -> list[TokenizedText]:
    """Return up to five documents of at most five different words of at most three tokens."""
    alphabet = draw(st.integers(1, 4))
    word = st.lists(st.integers(0, alphabet - 1), min_size=1, max_size=3)
    words = draw(st.lists(word, min_size=1, max_size=5))
    sentence = st.lists(st.sampled_from(words), max_size=16)
    return [text_of(*sentence) for sentence in draw(st.lists(sentence, max_size=5))]


drawn = given(texts(), st.integers(2, 5), st.sampled_from([anything, some]), st.booleans())


def whole_words(numbers: list[int], start: int, end: int) -> bool:
    """Return whether no word is cut at the ends of a stretch."""
    before = start == 0 or numbers[start - 1] != numbers[start]
    return before and (end == len(numbers) or numbers[end] != numbers[end - 1])


class Recounted:
    """Pair merging that counts all pairs of the text again before each merge.

    A unit is a stretch of a document and the number of its n-gram, or its token.
    """

    def __init__(self, documents, max_ngram, admissible, aligned):
        self.documents = [part for part in documents if part.tokens]
        self.text = [
            [(n, n + 1, token) for n, token in enumerate(part.tokens)] for part in self.documents
        ]
        self.base_size = max((max(part.tokens) for part in self.documents), default=0) + 1
        self.max_ngram, self.admissible, self.aligned = max_ngram, admissible, aligned

    def key(self, document, left, right):
        """Return what two neighbours merge into, None where they may not."""
        (start, middle, number), (_, end, token) = left, right
        if end - middle > 1 or end - start > self.max_ngram:
            return None
        numbers = document.pre_tokens
        crosses = self.aligned and numbers[middle - 1] != numbers[middle]
        if crosses and not whole_words(numbers, start, end):
            return None
        return number, token, crosses

    def places(self, units, document, key):
        """Return where a pair stands without overlap, leftmost first."""
        found, place = [], 0
        while place + 1 < len(units):
            hit = self.key(document, *units[place : place + 2]) == key
            if hit:
                found.append(place)
            place += 2 if hit else 1
        return found

    def run(self, size) -> Mined:
        mined = Mined([], [], sum(len(part.tokens) for part in self.documents))
        while len(mined.ngrams) < size:
            counts, spelled = Counter(), {}
            for units, document in zip(self.text, self.documents, strict=True):
                keys = {self.key(document, *pair): pair for pair in pairwise(units)}
                for key, (left, right) in keys.items():
                    if key is not None:
                        counts[key] += len(self.places(units, document, key))
                        spelled[key] = tuple(document.tokens[left[0] : right[1]])
            usable = {
                key: count
                for key, count in counts.items()
                if count >= 2
                and spelled[key] not in mined.ngrams
                and self.admissible(spelled[key], key[2])
            }
            if not usable:
                break
            key = min(usable, key=lambda key: (-usable[key], key))
            number = self.base_size + len(mined.ngrams)
            mined.ngrams.append(spelled[key])
            mined.saved.append(usable[key])
            for index, (units, document) in enumerate(zip(self.text, self.documents, strict=True)):
                places = set(self.places(units, document, key))
                self.text[index] = [
                    (unit[0], units[place + 1][1], number) if place in places else unit
                    for place, unit in enumerate(units)
                    if place - 1 not in places
                ]
        return mined


@drawn
@settings(max_examples=400)
def test_merging_agrees_with_counting_anew_before_each_merge(documents, longest, rule, aligned):
    found = PairMerging(documents, longest, rule, aligned).run(12)
    assert found == Recounted(documents, longest, rule, aligned).run(12)


def test_a_run_counts_as_often_as_it_can_be_merged():
    runs = [text_of([0] * 7), text_of([1, 0, 0, 0])]
    assert PairMerging(runs, 2, anything, False).run(9) == Mined([(0, 0)], [4], 11)


def test_what_a_run_loses_to_a_neighbour_does_not_count_twice():
    """Of every `0 0 0`, one pair can be merged, also when `1` has taken the first of them."""
    documents = [text_of([1, 0, 0, 0])] * 5 + [text_of([1, 0])] * 3
    found = PairMerging(documents, 2, anything, False).run(9)
    assert found == Mined([(1, 0), (0, 0)], [8, 5], 26)


def test_merges_done_in_order_save_what_is_said():
    @given(texts(), st.integers(2, 5))
    @settings(max_examples=150)
    def check(documents, longest):
        mined = PairMerging(documents, longest, anything, False).run(12)
        texts = [[(token,) for token in part.tokens] for part in documents]
        for ngram, saved in zip(mined.ngrams, mined.saved, strict=True):
            before = sum(map(len, texts))
            texts = [merged(text, ngram[:-1], ngram[-1:]) for text in texts]
            assert before - sum(map(len, texts)) == saved
        assert mined.tokens - sum(map(len, texts)) == sum(mined.saved)

    check()


def merged(text, left, right):
    done = []
    for unit in text:
        if unit == right and done and done[-1] == left:
            done[-1] = left + right
        else:
            done.append(unit)
    return done


@drawn
@settings(max_examples=150)
def test_every_prefix_of_a_merged_ngram_comes_before_it(documents, longest, rule, aligned):
    ngrams = PairMerging(documents, longest, rule, aligned).run(12).ngrams
    assert all(len(one) == 2 or one[:-1] in ngrams[:n] for n, one in enumerate(ngrams))


@each
@drawn
@settings(max_examples=150)
def test_ngrams_are_admissible_different_and_within_bounds(
    method, documents, longest, rule, aligned
):
    mined = method(documents, longest, rule, aligned).run(4)
    assert len(mined.ngrams) <= 4
    assert len(set(mined.ngrams)) == len(mined.ngrams) == len(mined.saved)
    assert all(2 <= len(ngram) <= longest for ngram in mined.ngrams)
    ways = {False, aligned}  # whether it may cross words
    assert all(any(rule(ngram, crosses) for crosses in ways) for ngram in mined.ngrams)
    assert mined.tokens == sum(len(part.tokens) for part in documents)


@each
def test_the_longest_ngram_may_be_reached(method):
    documents = [text_of(*([n] for n in range(end))) for end in (5, 5, 5, 5, 5, 5, 4, 3, 2)]
    for longest in (2, 3, 5):
        ngrams = method(documents, longest, anything, True).run(9).ngrams
        assert max(map(len, ngrams)) == longest


@each
def test_whether_an_ngram_crosses_words_is_told(method):
    asked = set()

    def listener(ngram, crosses):
        asked.add((ngram, crosses))
        return True

    documents = [text_of([0, 1], [2])] * 3
    method(documents, 3, listener, True).run(9)
    assert {crosses for ngram, crosses in asked if ngram == (0, 1)} == {False}
    assert {crosses for ngram, crosses in asked if ngram == (0, 1, 2)} == {True}
    asked.clear()
    method(documents, 3, listener, False).run(9)
    assert asked
    assert not any(crosses for _, crosses in asked)


@each
def test_an_aligned_ngram_cuts_no_word_that_it_leaves(method):
    """`0 | 1` is no n-gram where 1 begins a longer word; without words it is."""
    documents = [text_of([0], [1, 2]), text_of([0], [1, 3]), text_of([4, 0], [1])]
    assert method(documents, 2, anything, True).run(9).ngrams == []
    assert method(documents, 2, anything, False).run(9).ngrams == [(0, 1)]


@each
def test_no_ngram_is_of_two_documents(method):
    documents = [text_of([0]), text_of([1])] * 5
    assert method(documents, 4, anything, False).run(9).ngrams == []


@each
@pytest.mark.parametrize("aligned", [False, True])
def test_no_text_has_no_ngrams(method, aligned):
    for documents in ([], [text_of()]):
        assert method(documents, 4, anything, aligned).run(9) == Mined([], [], 0)


@each
@drawn
@settings(max_examples=100)
def test_the_order_of_documents_does_not_matter(method, documents, longest, rule, aligned):
    backwards = list(reversed(documents))
    found = method(documents, longest, rule, aligned).run(12)
    assert found == method(backwards, longest, rule, aligned).run(12)


def covering(documents, max_ngram, admissible, aligned, size) -> Mined:
    """Return what saves most in text not covered yet, all n-grams looked at anew each time."""
    mined = Mined([], [], sum(len(part.tokens) for part in documents))
    free = [[True] * len(part.tokens) for part in documents]
    while len(mined.ngrams) < size:
        places: dict = {}
        for number, part in enumerate(documents):
            for start in range(len(part.tokens)):
                for end in range(start + 2, min(start + max_ngram, len(part.tokens)) + 1):
                    numbers = set(part.pre_tokens[start:end])
                    across = aligned and len(numbers) > 1
                    if across and not whole_words(part.pre_tokens, start, end):
                        continue
                    found = places.setdefault((tuple(part.tokens[start:end]), across), [])
                    overlaps = found and found[-1][0] == number and found[-1][2] > start
                    if all(free[number][start:end]) and not overlaps:
                        found.append((number, start, end))
        usable = [
            (-len(found) * (len(ngram) - 1), ngram, across)
            for (ngram, across), found in places.items()
            if len(found) >= 2
            and ngram not in mined.ngrams
            and admissible(ngram, across)
            and (across or len(ngram) == 2 or ngram[:-1] in mined.ngrams)
        ]
        if not usable:
            break
        gain, ngram, across = min(usable)
        for number, start, end in places[ngram, across]:
            free[number][start:end] = [False] * (end - start)
        mined.ngrams.append(ngram)
        mined.saved.append(-gain)
    return mined


@drawn
@settings(max_examples=400)
def test_the_papers_selection_agrees_with_looking_at_all_anew(documents, longest, rule, aligned):
    found = FrequencySelection(documents, longest, rule, aligned).run(12)
    assert found == covering(documents, longest, rule, aligned, 12)


def test_text_that_an_ngram_covers_counts_for_no_other():
    """`0|1|2` takes all but one of `1|2`, so `3|4` comes next, though it is rarer."""
    documents = [text_of([0], [1], [2])] * 4 + [text_of([1], [2])] + [text_of([3], [4])] * 2
    found = FrequencySelection(documents, 3, anything, True).run(9)
    assert found == Mined([(0, 1, 2), (3, 4)], [8, 2], 18)


def test_within_a_word_only_ngrams_whose_head_is_there_are_taken():
    documents = [text_of([0, 1, 2])] * 4
    found = FrequencySelection(documents, 3, anything, True).run(9)
    assert found == Mined([(0, 1)], [4], 12)
    across = FrequencySelection([text_of([0], [1], [2])] * 4, 3, anything, True).run(9)
    assert across.ngrams == [(0, 1, 2)]


def test_texts_are_documents_in_base_tokens_up_to_a_number():
    documents = [Document(str(n), text) for n, text in enumerate(DOCUMENTS)]
    whole = list(tokenize(documents, extender("gpt2"), 10**9))
    assert [base("gpt2").decode(part.tokens) for part in whole] == DOCUMENTS
    limit = len(whole[0].tokens) + len(whole[1].tokens) // 2
    part = list(tokenize(documents, extender("gpt2"), limit))
    assert part[0] == whole[0]
    assert len(part) == 2
    assert sum(len(one.tokens) for one in part) == limit
    assert part[1].tokens == whole[1].tokens[: len(part[1].tokens)]
    assert part[1].pre_tokens == whole[1].pre_tokens[: len(part[1].tokens)]


def test_a_document_that_ends_at_the_number_is_the_last():
    documents = [Document("0", DOCUMENTS[0]), Document("1", DOCUMENTS[1])]
    length = len(extender("gpt2").segment(DOCUMENTS[0])[0])
    assert len(list(tokenize(documents, extender("gpt2"), length))) == 1


@given(texts(), st.integers(1, 40))
def test_a_limit_cuts_texts_and_adds_nothing(found, limit):
    cut = list(up_to(limit, found))
    everything = [token for one in found for token in one.tokens]
    assert [token for one in cut for token in one.tokens] == everything[:limit]
    for part, whole in zip(cut, found, strict=False):
        assert part.pre_tokens == whole.pre_tokens[: len(part.tokens)]
    assert len(cut) == len(found) or sum(len(one.tokens) for one in cut) == limit
