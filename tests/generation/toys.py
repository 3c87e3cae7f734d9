"""A cache and a model of toy make, for tests of a batch alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tests.conftest import FLAT
from tests.generation.models import TOKENIZER
from trimtab.capabilities import Drafter
from trimtab.generation.batch import Batch
from trimtab.generation.drafts import Drafts
from trimtab.generation.request import Request
from trimtab.generation.sampling import Sampler, Sampling
from trimtab.generation.stats import EngineStats
from trimtab.generation.stopping import Detokenizer
from trimtab.vattention.pages import KVOutOfMemory

VOCABULARY = 97
CPU = torch.device("cpu")


class ToyCache:
    """A cache with memory for a number of tokens; `held` is what the toy model wrote."""

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


def following(ids: Sequence[int]) -> int:
    """Return the toy model's next token, which depends on every token before it, in order."""
    state = 1
    for token in ids:
        state = (state * 31 + token + 7) % 1_000_003
    return state % VOCABULARY


def continued(prompt: Sequence[int], count: int) -> list[int]:
    """Return the toy model's continuation of a prompt."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(following(ids))
    return ids[len(prompt) :]


def one_hot(ids: Sequence[int]) -> Tensor:
    """Return logits of the toy model's next token alone."""
    return torch.nn.functional.one_hot(torch.tensor(following(ids)), VOCABULARY).float()


class ToyForward:
    """A model over the tokens in a `ToyCache`.

    Parameters
    ----------
    kv : ToyCache
    logits : callable
        Of the next token, given all ids so far.
    together : bool
        Whether it verifies several texts in one pass.

    Attributes
    ----------
    events : list of (str, int, int)
        For every forward pass its kind, its tokens, and how many other sequences had a slot.
    """

    def __init__(
        self,
        kv: ToyCache,
        logits: Callable[[Sequence[int]], Tensor] = one_hot,
        together: bool = True,
    ) -> None:
        self.kv, self.logits, self.together = kv, logits, together
        self.events: list[tuple[str, int, int]] = []

    def prefill(self, slot: int, ids: Sequence[int], start: int) -> Tensor:
        self.write("prefill", slot, ids, start)
        return self.logits(self.kv.held[slot])[None]

    def verify(self, slot: int, ids: Sequence[int], start: int) -> Tensor:
        self.write("verify", slot, ids, start)
        held = self.kv.held[slot]
        return torch.stack([self.logits(held[:end]) for end in range(start + 1, len(held) + 1)])

    def verify_together(self, texts: Sequence[tuple[int, Sequence[int], int]]) -> Tensor:
        assert self.together
        assert sum(len(ids) for _, ids, _ in texts) <= FLAT.most_rows
        return torch.cat([self.verify(*text) for text in texts])

    def decode(self, newest: Mapping[int, int]) -> Tensor:
        rows = []
        for slot, token in newest.items():
            self.write("decode", slot, [token], len(self.kv.held[slot]))
            assert len(self.kv.held[slot]) == self.kv.sizes[slot]
            rows.append(self.logits(self.kv.held[slot]))
        return torch.stack(rows)

    def write(self, kind: str, slot: int, ids: Sequence[int], start: int) -> None:
        assert len(self.kv.held[slot]) == start
        self.events.append((kind, len(ids), len(self.kv.sizes) - 1))
        self.kv.held[slot] += ids
        assert len(self.kv.held[slot]) <= self.kv.sizes[slot]


def request_of(
    index: int,
    prompt: list[int],
    new: int,
    sampling: Sampling | None = None,
    stop_tokens: frozenset[int] = frozenset(),
) -> Request:
    def sampler() -> Sampler:
        return Sampler(sampling or Sampling(), index, CPU)

    return Request(index, prompt, new, stop_tokens, Detokenizer(TOKENIZER), sampler)


def batch_of(
    forward: ToyForward,
    requests: list[Request],
    chunk: int,
    drafter: Drafter | None = None,
    **more: Any,
) -> Batch:
    drafts = Drafts(drafter, FLAT, frozenset()) if drafter else None
    defaults = {"drafts": drafts, "on_token": None, "stats": EngineStats()}
    return Batch(forward, forward.kv, requests, chunk, **{**defaults, **more})


class Guesses:
    """A drafter that is right for some tokens and wrong after them, as long as a text is."""

    def __init__(self, right: int, wrong: int) -> None:
        self.right, self.wrong = right, wrong

    def start(self, ids: Sequence[int]) -> Guessed:
        return Guessed(self, list(ids))


class Guessed:
    def __init__(self, drafter: Guesses, ids: list[int]) -> None:
        self.drafter, self.ids = drafter, ids

    def accept(self, tokens: Sequence[int]) -> None:
        self.ids += tokens

    def propose(self, limit: int) -> list[tuple[int, float]]:
        draft = continued(self.ids, self.drafter.right) + [VOCABULARY] * self.drafter.wrong
        return [(token, 0.9) for token in draft[:limit]]
