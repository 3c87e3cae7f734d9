"""What the drafter proposes, against the same from the texts it was counted on."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import tiny
from trimtab.adaptivocab import AdaptiVocab, Mode
from trimtab.adaptivocab.drafting import counting
from trimtab.adaptivocab.drafting.drafter import NGramDrafter
from trimtab.adaptivocab.ngrams import NGrams
from trimtab.adaptivocab.vocabulary import Vocabulary
from trimtab.corpus import Corpus, Document, encode

tokens = st.lists(st.integers(0, 2), max_size=14)
ngram = st.lists(st.integers(0, 2), min_size=2, max_size=4).map(tuple)
counted = {
    "ngrams": st.lists(ngram, max_size=5, unique=True),
    "texts": st.lists(tokens, max_size=4),
    "threshold": st.sampled_from([0.1, 0.25, 1 / 3, 0.5, 0.7]),
    "context": st.integers(1, 4),
    "longest": st.integers(1, 5),
}


def reference(ids, ngrams, texts, threshold, context, longest) -> list[int]:
    """Return what `propose` must, the slow way: from the texts, at every token anew."""

    def may_follow(end: list[int], token: int) -> bool:
        for start in range(len(end)):
            for one in ngrams:
                part = tuple(end[start:])
                if one[: len(part) + 1] == (*part, token) and len(part) < len(one):
                    return True
                if part == one and token in {other[0] for other in ngrams}:
                    return True
        return False

    def best(text: list[int]) -> tuple[float, int, int]:
        found = []
        for size in range(1, min(context, len(text)) + 1):
            end = text[-size:]
            followed = [
                known[n + size]
                for known in texts
                for n in range(len(known) - size)
                if known[n : n + size] == end
            ]
            for token in set(followed):
                probability = np.float32(followed.count(token) / (len(followed) + 1))
                if may_follow(end, token) and probability >= np.float32(threshold):
                    found.append((float(probability), -size, -token))
        return max(found, default=(0.0, 0, 0))

    draft: list[int] = []
    accepted = 1.0
    while len(draft) < longest:
        probability, _, token = best([*ids, *draft])
        accepted *= probability
        if not accepted or accepted < float(np.float32(threshold)):
            break
        draft.append(-token)
    return draft


@settings(max_examples=200, deadline=None)
@given(ids=tokens, **counted)
def test_propose_agrees_with_a_slow_reference(ids, ngrams, texts, **limits):
    drafter = NGramDrafter.count(NGrams(4, tuple(ngrams)), texts, **limits)
    assert drafter.propose(ids) == reference(ids, ngrams, texts, **limits)


@settings(max_examples=50, deadline=None)
@given(**counted)
def test_tensors_hold_everything(ngrams, texts, **limits):
    drafter = NGramDrafter.count(NGrams(4, tuple(ngrams)), texts, **limits)
    tensors = drafter.to_tensors()
    assert {str(one.dtype) for one in tensors.values()} == {"torch.int32", "torch.float32"}
    assert NGramDrafter.from_tensors(tensors) == drafter


def test_drafts_reach_over_n_grams_while_they_are_likely():
    ngrams = NGrams(10, ((1, 2), (3, 4, 5)))
    text = [1, 2, 3, 4, 5, 9]
    assert NGramDrafter.count(ngrams, [text] * 9).propose([7, 1]) == [2, 3, 4, 5]
    assert NGramDrafter.count(ngrams, [text] * 9, longest=2).propose([7, 1]) == [2, 3]
    assert NGramDrafter.count(ngrams, [text] * 9, threshold=0.85).propose([7, 1]) == [2]
    assert NGramDrafter.count(ngrams, [text] * 9).propose([7]) == []
    tied = NGrams(10, ((1, 2), (1, 3), (1, 4)))
    assert NGramDrafter.count(tied, [[1, 3], [1, 2], [1, 4]]).propose([1]) == [2]


def test_rare_contexts_of_long_texts_are_left_out(monkeypatch):
    ngrams = NGrams(10, ((1, 2), (3, 4)))
    texts = [[1, 2]] * 5 + [[3, 4]]
    assert set(NGramDrafter.count(ngrams, texts).guesses) == {(1,), (3,)}
    monkeypatch.setattr(counting, "CONTEXTS", 6)
    assert set(NGramDrafter.count(ngrams, texts).guesses) == {(1,)}


def test_a_calibrated_drafter_proposes_no_special_token():
    """Not even where one follows a word more often than anything else does."""
    loaded = tiny()
    special = set(loaded.tokenizer.added_tokens_decoder)
    text = " word</s> other<s><pad>" * 60
    assert special <= set(encode(loaded.tokenizer, text))
    corpus = Corpus("marks", [Document(str(n), f"{text}{n}") for n in range(20)], 0.5, 0.2)
    method = AdaptiVocab(mode=Mode.draft, size=50)
    artifact = method.calibrate(loaded.model, loaded.tokenizer, corpus)
    drafter = Vocabulary.from_artifact(artifact).drafter
    assert drafter.propose(encode(loaded.tokenizer, " wo")) == encode(loaded.tokenizer, "rd")
    assert special.isdisjoint(token for token, _ in drafter.guesses.values())
    assert special & {token for context in drafter.guesses for token in context}
