"""Who reads, who decodes, who waits: alone, and in a batch on a cache and a model of toy make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.generation.models import TOKENIZER
from trimtab.generation.batch import Batch
from trimtab.generation.request import Finish, Request
from trimtab.generation.sampling import Sampler, Sampling
from trimtab.generation.scheduler import Chunk, Scheduler
from trimtab.generation.stats import EngineStats
from trimtab.generation.stopping import Detokenizer
from trimtab.vattention.pages import KVOutOfMemory

VOCABULARY = 97
CPU = torch.device("cpu")


def test_a_prompt_is_read_in_chunks_of_its_own():
    scheduler = Scheduler([5, 4], slots=2, chunk=2)
    assert scheduler.next() == 0
    scheduler.admit()
    chunks = []
    while (chunk := scheduler.chunk()) is not None:
        assert scheduler.next() is None  # one at a time
        chunks.append(chunk)
        scheduler.prefilled(chunk)
    assert chunks == [Chunk(0, 0, 2, False), Chunk(0, 2, 4, False), Chunk(0, 4, 5, True)]
    assert scheduler.running == [0]
    assert scheduler.next() == 1


def test_the_youngest_goes_back_to_the_front_until_one_is_finished():
    scheduler = Scheduler([1, 1, 1, 1], slots=3, chunk=8)
    for _ in range(2):
        scheduler.admit()
        scheduler.prefilled(scheduler.chunk())
    scheduler.admit()
    assert scheduler.preempt() == 2  # it still reads
    assert scheduler.preempt() == 1
    assert list(scheduler.waiting) == [1, 2, 3]
    assert scheduler.next() is None
    scheduler.finish(0)
    assert scheduler.next() == 1


class ToyCache:
    """The cache's contract with memory for a number of tokens, and what the toy model wrote."""

    def __init__(self, slots: int, budget: int) -> None:
        self.lengths = [0] * slots  # only counted
        self.held: dict[int, list[int]] = {}
        self.sizes: dict[int, int] = {}
        self.budget = budget
        self.refused = 0

    def acquire(self) -> int:
        slot = next(slot for slot in reversed(range(len(self.lengths))) if slot not in self.sizes)
        self.sizes[slot], self.held[slot] = 0, []
        return slot

    def ensure(self, lengths: Mapping[int, int]) -> None:
        wanted = {**self.sizes, **lengths}
        assert all(wanted[slot] >= size for slot, size in self.sizes.items())
        if sum(wanted.values()) > self.budget:
            self.refused += 1
            raise KVOutOfMemory(sum(wanted.values()), self.budget)
        self.sizes = wanted

    def truncate(self, slot: int, length: int) -> None:
        assert length <= self.sizes[slot]
        self.sizes[slot] = length
        del self.held[slot][length:]

    def release(self, slot: int) -> None:
        del self.sizes[slot], self.held[slot]


class ToyForward:
    """A model whose next token depends on every token in the cache, in order."""

    def __init__(self, kv: ToyCache) -> None:
        self.kv = kv
        self.events: list[tuple[str, int, int]] = []  # with how many other sequences have a slot

    def prefill(self, slot: int, ids: Sequence[int], start: int) -> torch.Tensor:
        self.events.append(("prefill", len(ids), len(self.kv.sizes) - 1))
        self.write(slot, ids, start)
        return one_hot(following(self.kv.held[slot]))[None]

    def verify(self, slot: int, ids: Sequence[int], start: int) -> torch.Tensor:
        self.events.append(("verify", len(ids), 0))
        self.write(slot, ids, start)
        held = self.kv.held[slot]
        ends = range(start + 1, len(held) + 1)
        return torch.stack([one_hot(following(held[:end])) for end in ends])

    def decode(self, newest: Mapping[int, int]) -> torch.Tensor:
        self.events.append(("decode", len(newest), 0))
        rows = torch.full((len(self.kv.lengths), VOCABULARY), torch.nan)
        for slot, token in newest.items():
            self.write(slot, [token], len(self.kv.held[slot]))
            assert len(self.kv.held[slot]) == self.kv.sizes[slot]
            rows[slot] = one_hot(following(self.kv.held[slot]))
        return rows

    def write(self, slot: int, ids: Sequence[int], start: int) -> None:
        assert len(self.kv.held[slot]) == start
        self.kv.held[slot] += ids
        assert len(self.kv.held[slot]) <= self.kv.sizes[slot]


def following(ids: Sequence[int]) -> int:
    state = 1
    for token in ids:
        state = (state * 31 + token + 7) % 1_000_003
    return state % VOCABULARY


def one_hot(token: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(token), VOCABULARY).float()


def continued(prompt: Sequence[int], count: int) -> list[int]:
    ids = list(prompt)
    for _ in range(count):
        ids.append(following(ids))
    return ids[len(prompt) :]


def request_of(index: int, prompt: list[int], new: int) -> Request:
    def sampler() -> Sampler:
        return Sampler(Sampling(), index, CPU)

    return Request(index, prompt, new, frozenset(), Detokenizer(TOKENIZER), sampler)


def batch_of(forward: ToyForward, requests: list[Request], chunk: int, **more: Any) -> Batch:
    defaults = {
        "drafter": None,
        "undrafted": frozenset(),
        "on_token": None,
        "stats": EngineStats(),
    }
    return Batch(forward, forward.kv, requests, chunk, **{**defaults, **more})


class Guesses:
    """Drafts that are right up to a token, as long as a text is."""

    context = 1000

    def __init__(self, right: int, wrong: int) -> None:
        self.right, self.wrong = right, wrong

    def propose(self, ids: Sequence[int]) -> list[int]:
        return continued(ids, self.right) + [VOCABULARY] * self.wrong


works = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=9)


@given(
    work=works,
    slots=st.integers(1, 4),
    chunk=st.integers(1, 6),
    spare=st.integers(0, 40),
    guesses=st.none() | st.tuples(st.integers(0, 3), st.integers(0, 2)),
)
def test_every_prompt_is_continued_as_if_it_were_alone(work, slots, chunk, spare, guesses):
    budget = max(prompt + new for prompt, new in work) + spare
    cache = ToyCache(slots, budget)
    forward = ToyForward(cache)
    prompts = [[(size * 5 + place) % VOCABULARY for place in range(size)] for size, _ in work]
    requests = [
        request_of(index, prompt, new)
        for index, (prompt, (_, new)) in enumerate(zip(prompts, work, strict=True))
    ]
    handed: list[tuple[int, int]] = []
    stats = EngineStats()
    batch = batch_of(
        forward,
        requests,
        chunk,
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
    completions = [request.completion() for request in requests]
    for index, (prompt, (_, new)) in enumerate(zip(prompts, work, strict=True)):
        expected = continued(prompt, new)
        assert completions[index].tokens == expected
        assert completions[index].finish is Finish.length
        assert [token for one, token in handed if one == index] == expected
    # Admitted in order, and the oldest is never put back.
    firsts = [index for place, (index, _) in enumerate(handed) if index not in dict(handed[:place])]
    assert firsts == sorted(firsts)
    assert completions[0].preemptions == 0
    assert sum(one.preemptions for one in completions) == stats.preemptions
    assert stats.diverged == 0
    if sum(prompt + new for prompt, new in work) <= budget:
        assert stats.preemptions == 0
    if guesses is None:
        # Nobody asks again for memory that there cannot be.
        assert cache.refused <= stats.preemptions + len(work)
    right = guesses[0] if guesses else 0
    assert stats.accepted <= right * stats.verify_steps
    if slots == 1 and right and max(new for _, new in work) > 2:
        assert stats.accepted > 0


@given(work=works, slots=st.integers(2, 4), chunk=st.integers(1, 6))
def test_those_that_decode_wait_for_one_chunk_at_most(work, slots, chunk):
    cache = ToyCache(slots, 10_000)
    forward = ToyForward(cache)
    requests = [request_of(index, [1] * size, new) for index, (size, new) in enumerate(work)]
    for _ in batch_of(forward, requests, chunk).run():
        pass
    waited = 0
    for kind, size, others in forward.events:
        waited = waited + size if kind == "prefill" and others else 0
        assert waited <= chunk
    read = sum(size for kind, size, _ in forward.events if kind == "prefill")
    assert read == sum(size for size, _ in work)


def test_memory_that_is_gone_for_a_sequence_alone_is_an_error():
    cache = ToyCache(2, 6)
    requests = [request_of(0, [1, 2, 3], 9)]
    with pytest.raises(KVOutOfMemory):
        list(batch_of(ToyForward(cache), requests, 4).run())
    assert not cache.sizes
