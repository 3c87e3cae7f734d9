"""A batch on a cache and a model of toy make: every request as if it ran alone."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.generation.toys import (
    VOCABULARY,
    Guesses,
    ToyCache,
    ToyForward,
    batch_of,
    continued,
    one_hot,
    request_of,
)
from trimtab.generation.request import Finish
from trimtab.generation.sampling import Sampler, Sampling
from trimtab.generation.stats import EngineStats
from trimtab.vattention.pages import KVOutOfMemory

works = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=9)


@given(
    work=works,
    slots=st.integers(1, 4),
    chunk=st.integers(1, 6),
    spare=st.integers(0, 40),
    guesses=st.none() | st.tuples(st.integers(0, 3), st.integers(0, 2)),
    stop=st.frozensets(st.integers(0, VOCABULARY - 1), max_size=20),
    together=st.booleans(),
    apart=st.booleans(),
)
def test_every_prompt_is_continued_as_if_it_were_alone(
    work, slots, chunk, spare, guesses, stop, together, apart
):
    budget = max(prompt + new for prompt, new in work) + spare
    cache = ToyCache(slots, budget)
    forward = ToyForward(cache, together=together)
    prompts = [[(size * 5 + place) % VOCABULARY for place in range(size)] for size, _ in work]
    requests = [
        request_of(index, prompt, new, stop_tokens=stop)
        for index, (prompt, (_, new)) in enumerate(zip(prompts, work, strict=True))
    ]
    handed: list[tuple[int, int]] = []
    stats = EngineStats()
    batch = batch_of(
        forward,
        requests,
        chunk,
        apart=apart,
        drafter=None if guesses is None else Guesses(*guesses),
        on_token=lambda index, token, _: handed.append((index, token)),
        stats=stats,
    )
    finished = []
    for request in batch.run():
        assert len(cache.sizes) <= slots
        finished.append(request.index)

    assert sorted(finished) == list(range(len(work)))
    assert not cache.sizes
    assert not apart or all(
        len(sizes) == 1 for kind, sizes, _ in forward.events if kind == "prefill"
    )
    completions = [request.completion() for request in requests]
    for index, (prompt, (_, new)) in enumerate(zip(prompts, work, strict=True)):
        expected, finish = continued(prompt, new), Finish.length
        for place, token in enumerate(expected):
            if token in stop:
                expected, finish = expected[: place + 1], Finish.stop
                break
        assert completions[index].tokens == expected
        assert completions[index].finish is finish
        assert [token for one, token in handed if one == index] == expected
    # Prompts are admitted in order, and the oldest is never preempted.
    firsts = [index for place, (index, _) in enumerate(handed) if index not in dict(handed[:place])]
    assert firsts == sorted(firsts)
    assert completions[0].preemptions == 0
    assert sum(one.preemptions for one in completions) == stats.preemptions
    assert stats.diverged == 0
    if sum(prompt + new for prompt, new in work) <= budget:
        assert stats.preemptions == 0
    if guesses is None:
        # Memory that is known to be missing is not requested again.
        assert cache.refused <= stats.preemptions + len(work)
    right = guesses[0] if guesses else 0
    assert stats.accepted <= right * stats.verify_steps * (slots if together else 1)
    assert stats.proposed == sum(stats.proposed_by_position)
    assert stats.accepted == sum(stats.accepted_by_position)
    assert not any(stats.accepted_by_position[right:])
    if not stats.preemptions and not stop:
        # A step yields a token of each text besides those accepted, and so does a prompt.
        rows = sum(len(sizes) for kind, sizes, _ in forward.events if kind != "prefill")
        assert rows + len(work) + stats.accepted == sum(len(one.tokens) for one in completions)
    if apart and not together:  # several tokens in a pass round in another way than one
        assert stats.proposed == 0
    elif slots == 1 and right and not stop and max(new for _, new in work) > 2:
        assert stats.accepted > 0


@given(work=works, slots=st.integers(2, 4), chunk=st.integers(1, 6))
def test_decoding_sequences_wait_for_one_chunk_at_most(work, slots, chunk):
    cache = ToyCache(slots, 10_000)
    forward = ToyForward(cache)
    requests = [request_of(index, [1] * size, new) for index, (size, new) in enumerate(work)]
    for _ in batch_of(forward, requests, chunk).run():
        pass
    waited = 0
    for kind, sizes, begun in forward.events:
        waited = waited + sum(sizes) if kind == "prefill" and begun else 0
        assert waited <= chunk
    prefilled = sum(sum(sizes) for kind, sizes, _ in forward.events if kind == "prefill")
    assert prefilled == sum(size for size, _ in work)


def test_memory_that_is_missing_for_a_single_sequence_is_an_error():
    cache = ToyCache(2, 6)
    requests = [request_of(0, [1, 2, 3], 9)]
    with pytest.raises(KVOutOfMemory):
        list(batch_of(ToyForward(cache), requests, 4).run())
    assert not cache.sizes


def spread(ids: Sequence[int]) -> Tensor:
    """Return logits of which draws are often, but not always, the toy model's own token."""
    return 5 * one_hot(ids)


def test_every_pass_waits_for_the_device_once(monkeypatch):
    """Whether tokens are drawn or the likeliest; nothing is drafted."""
    reads: Counter[str] = Counter()
    for name in ("tolist", "item", "__int__", "__bool__", "__float__"):
        read = getattr(Tensor, name)

        def counted(one: Tensor, name: str = name, read: Any = read) -> Any:
            reads[name] += 1
            return read(one)

        monkeypatch.setattr(Tensor, name, counted)
    forward = ToyForward(ToyCache(4, 200), spread)
    sampled = Sampling(temperature=0.9, top_k=40, top_p=0.95, seed=2)
    requests = [
        request_of(index, [index + 1] * (index + 2), 7, None if index == 1 else sampled)
        for index in range(5)
    ]
    assert len(list(batch_of(forward, requests, 8).run())) == 5
    assert reads == {"tolist": len(forward.events)}


def test_a_token_has_no_time_before_it_is_drawn(monkeypatch):
    """The clock tells how many tokens were drawn; those of one pass share a time."""
    draws, draw = [0], Sampler.draw

    def counted(*arguments: Any) -> Tensor:
        draws[0] += 1
        return draw(*arguments)

    monkeypatch.setattr(Sampler, "draw", counted)
    monkeypatch.setattr(time, "perf_counter", lambda: float(draws[0]))
    forward = ToyForward(ToyCache(1, 200), spread)
    request = request_of(0, [3, 1, 4], 60, Sampling(temperature=1.0, seed=1))
    list(batch_of(forward, [request], 8, Guesses(4, 0)).run())
    completion = request.completion()
    assert completion.steps == len(forward.events) < draws[0] == 60
    assert all(moment > place for place, moment in enumerate(completion.times))
