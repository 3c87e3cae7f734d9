"""What the drafter proposes, against the same from the texts it was counted on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.adaptivocab.drafting import counting, drafter, running
from trimtab.adaptivocab.drafting.counting import ContextCounts
from trimtab.adaptivocab.drafting.drafter import LEAST, ContextDrafter
from trimtab.adaptivocab.drafting.guess import BACKOFF
from trimtab.adaptivocab.drafting.rates import CAUTION, DECAY, EDGES, WEIGHT
from trimtab.adaptivocab.drafting.running import RunningCounts

tokens = st.lists(st.integers(0, 3), max_size=25)
texts_of_tokens = st.lists(tokens, max_size=4)
contexts = st.integers(1, 4)


def followers(texts: Sequence[Sequence[int]], context: Sequence[int]) -> list[int]:
    """Return what follows each occurrence of a context, the slow way."""
    size = len(context)
    return [
        text[place + size]
        for text in texts
        for place in range(len(text) - size)
        if list(text[place : place + size]) == list(context)
    ]


def guessed(texts, ids, recent) -> tuple[int, float, int] | None:
    """Return the token, the estimate and the agreement that the counts of both texts give."""
    token, estimate, said = None, 0.0, [None, None]
    for size in range(1, len(recent) + 1):
        for kind, known in enumerate((texts, [ids])):
            found = followers(known, recent[-size:])
            if not found:
                continue
            counts = Counter(found)
            most = max(counts.values())
            tied = [one for one in counts if counts[one] == most]
            best = min(tied) if kind == 0 else max(tied, key=lambda one: last(found, one))
            said[kind] = best
            fresh = most / (len(found) + BACKOFF)
            left = estimate * BACKOFF / (len(found) + BACKOFF)
            if best == token:
                estimate = fresh + left
            elif fresh > left:
                token, estimate = best, fresh
            else:
                estimate = left
    return None if token is None else (token, estimate, (said[0] == token) + 2 * (said[1] == token))


def last(found: list[int], token: int) -> int:
    return len(found) - found[::-1].index(token)


def proposed(ids, texts, context, limit) -> list[tuple[int, float]]:
    """Return what `propose` must, the slow way: from the texts, at every token anew."""
    bounds = [0.0, *EDGES, 1.0]

    def rate(guess, history) -> float:
        place = int(np.digitize(guess[1], EDGES))
        hits, trials = WEIGHT * CAUTION * (bounds[place] + bounds[place + 1]) / 2, float(WEIGHT)
        for earlier, hit in history:
            if earlier[2] == guess[2] and int(np.digitize(earlier[1], EDGES)) == place:
                hits, trials = hits * DECAY + hit, trials * DECAY + 1
        return hits / trials

    history = []
    for end in range(len(ids)):
        if guess := guessed(texts, ids[:end], ids[max(end - context, 0) : end]):
            history.append((guess, guess[0] == ids[end]))
    draft, chance, recent = [], 1.0, ids[-context:]
    while len(draft) < limit and (guess := guessed(texts, ids, recent)):
        chance *= rate(guess, history)
        if chance < LEAST:
            break
        draft.append((guess[0], rate(guess, history)))
        recent = [*recent, guess[0]][-context:]
    return draft


@settings(max_examples=150)
@given(ids=tokens, texts=texts_of_tokens, context=contexts, limit=st.integers(0, 5))
def test_propose_agrees_with_a_slow_reference(ids, texts, context, limit):
    found = ContextDrafter.count(texts, context).start(ids).propose(limit)
    expected = proposed(ids, texts, context, limit)
    assert [token for token, _ in found] == [token for token, _ in expected]
    assert [one for _, one in found] == pytest.approx([one for _, one in expected])


@settings(max_examples=50)
@given(texts=texts_of_tokens, context=contexts, ids=tokens)
def test_tensors_hold_everything(texts, context, ids):
    made = ContextDrafter.count(texts, context)
    tensors = made.to_tensors()
    assert {one.dtype for one in tensors.values()} == {torch.int32}
    again = ContextDrafter.from_tensors(tensors)
    assert again.context == context
    assert again.start(ids).propose(9) == made.start(ids).propose(9)
    for name, tensor in again.to_tensors().items():
        assert torch.equal(tensor, tensors[name])


@settings(max_examples=50)
@given(texts=texts_of_tokens, ids=tokens, cuts=st.lists(st.integers(0, 25)))
def test_what_is_proposed_depends_on_the_text_alone(texts, ids, cuts):
    """However it came, and whatever was proposed on the way: as after a preemption."""
    made = ContextDrafter.count(texts)
    drafts, place = made.start(ids[:0]), 0
    for cut in sorted(cuts):
        drafts.accept(ids[place:cut])
        drafts.propose(3)
        place = max(place, cut)
    drafts.accept(ids[place:])
    assert drafts.propose(9) == made.start(ids).propose(9)


def test_a_long_prompt_is_counted_whole_and_tested_at_its_end(monkeypatch):
    learned = []
    monkeypatch.setattr(drafter, "LEARNED", 5)
    monkeypatch.setattr(drafter.HitRates, "learn", lambda self, guess, hit: learned.append(hit))
    drafts = ContextDrafter.count([]).start([1, 2, 3] + [9] * 20)
    assert learned == [True] * 5
    drafts.accept([1])
    assert [token for token, _ in drafts.propose(2)] == [2, 3]


def test_rare_contexts_of_long_texts_are_left_out(monkeypatch):
    texts = [[1, 2]] * 5 + [[3, 4]]
    assert len(ContextCounts.of(texts, 3)) == 2
    monkeypatch.setattr(counting, "CONTEXTS", 6)
    counts = ContextCounts.of(texts, 3)
    assert len(counts) == 1
    assert counts.tokens[counts.child(counting.ROOT, 1)] == 2


def test_a_running_text_forgets_what_it_saw_first(monkeypatch):
    monkeypatch.setattr(running, "CONTEXTS", 100)
    counts = RunningCounts(3)
    for token in range(500):
        counts.add(token)
    assert counts.after((0,)) is None
    assert counts.after((498,)).token == 499
    assert len(counts._followers) <= 100


def test_a_text_that_stops_repeating_itself_is_no_longer_drafted():
    draw = np.random.default_rng(0)
    drafts = ContextDrafter.count([]).start([1, 2, 3, 4] * 10)
    assert [token for token, _ in drafts.propose(4)] == [1, 2, 3, 4]
    assert drafts.propose(1)[0][1] > 0.8
    drafts.accept(draw.integers(0, 5, 200).tolist())
    assert all(probability < 0.4 for _, probability in drafts.propose(1))


def test_steps_of_a_text_that_is_known():
    text = list(range(20))
    known = ContextDrafter.count([text] * 20)
    assert known.steps(text) < 8
    assert ContextDrafter.count([]).steps(text) == 20
    assert known.steps([]) == 0
