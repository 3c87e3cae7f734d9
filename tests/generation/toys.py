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
from trimtab.generation.forward import Span
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
    events : list of (str, list of int, int)
        For every forward pass its kind, the tokens of each text, and how many sequences had begun
        and not ended.
    requests : list of Request
    """

    def __init__(
        self,
        kv: ToyCache,
        logits: Callable[[Sequence[int]], Tensor] = one_hot,
        together: bool = True,
    ) -> None:
        self.kv, self.logits, self.together = kv, logits, together
        self.events: list[tuple[str, list[int], int]] = []
        self.requests: list[Request] = []

    def prefill(self, spans: Sequence[Span]) -> Tensor:
        self.write("prefill", spans)
        return torch.stack([self.logits(self.kv.held[span.slot]) for span in spans])

    def verify(self, spans: Sequence[Span]) -> Tensor:
        assert self.together or len(spans) == 1
        assert not self.together or sum(len(span.ids) for span in spans) <= FLAT.most_rows
        self.write("verify", spans)
        return self.after_each(spans)

    def choose(self, spans: Sequence[Span]) -> list[int]:
        assert self.together
        drafted = any(len(span.ids) > 1 for span in spans)
        assert not drafted or sum(len(span.ids) for span in spans) <= FLAT.most_rows
        self.write("verify" if drafted else "decode", spans)
        return self.after_each(spans).argmax(-1).tolist()

    def after_each(self, spans: Sequence[Span]) -> Tensor:
        return torch.stack(
            [
                self.logits(self.kv.held[slot][: start + place + 1])
                for slot, ids, start in spans
                for place in range(len(ids))
            ]
        )

    def decode(self, newest: Mapping[int, int]) -> Tensor:
        spans = [Span(slot, [token], len(self.kv.held[slot])) for slot, token in newest.items()]
        self.write("decode", spans)
        assert all(len(self.kv.held[slot]) == self.kv.sizes[slot] for slot in newest)
        return self.after_each(spans)

    def write(self, kind: str, spans: Sequence[Span]) -> None:
        for slot, ids, start in spans:
            assert len(self.kv.held[slot]) == start
            self.kv.held[slot] += ids
        begun = sum(one.finish is None and len(one.ids) > len(one.prompt) for one in self.requests)
        self.events.append((kind, [len(span.ids) for span in spans], begun))


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
    forward.requests = requests
    drafts = Drafts(drafter, FLAT, frozenset()) if drafter else None
    defaults = {"apart": False, "drafts": drafts, "on_token": None, "stats": EngineStats()}
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
