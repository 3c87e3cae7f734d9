"""One call of the engine: from prompts to completions, one forward pass at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from itertools import takewhile

from torch import Tensor

from trimtab.capabilities import Drafter
from trimtab.generation.forward import Forward
from trimtab.generation.request import Request
from trimtab.generation.scheduler import Scheduler
from trimtab.generation.stats import EngineStats
from trimtab.vattention.pages import KVOutOfMemory
from trimtab.vattention.virtual_kv import VirtualKV

OnToken = Callable[[int, int, str], object]


class Batch:
    """Runs requests to completion on the slots of a cache.

    Parameters
    ----------
    forward : Forward
    kv : VirtualKV
        With all its slots free; they are free again afterwards, whatever happens.
    requests : list of Request
        By index.
    chunk : int
        The most prompt tokens in one forward pass, and between two decode steps.
    drafter : Drafter, optional
        Consulted while a single sequence decodes.
    undrafted : frozenset of int
        Special tokens; a draft is cut before the first of them.
    on_token : callable, optional
        Called with the index of the prompt, the token, and the text that the token makes final.
    stats : EngineStats
        Updated in place.
    """

    def __init__(
        self,
        forward: Forward,
        kv: VirtualKV,
        requests: list[Request],
        chunk: int,
        *,
        drafter: Drafter | None,
        undrafted: frozenset[int],
        on_token: OnToken | None,
        stats: EngineStats,
    ) -> None:
        self._forward, self._kv, self._stats = forward, kv, stats
        self._requests, self._chunk = requests, chunk
        self._drafter, self._undrafted, self._on_token = drafter, undrafted, on_token
        self._slots: dict[int, int] = {}  # by the index of the request
        sizes = [len(request.prompt) for request in requests]
        self._scheduler = Scheduler(sizes, len(kv.lengths), chunk)

    def run(self) -> Generator[Request, None, None]:
        """Yield the requests as they finish."""
        try:
            while not self._scheduler.done:
                yield from self._prefill()
                yield from self._decode()
        finally:
            for index in list(self._slots):
                self._release(index)

    def _prefill(self) -> Iterator[Request]:
        """Admit and prefill prompts, up to `chunk` tokens in all."""
        room = self._chunk
        while self._scheduler.prefilling is not None or self._admit():
            chunk = self._scheduler.chunk()
            assert chunk is not None
            room -= chunk.end - chunk.start
            if room < 0:
                return
            request = self._requests[chunk.index]
            ids = request.prompt[chunk.start : chunk.end]
            logits = self._forward.prefill(self._slots[chunk.index], ids, chunk.start)
            self._stats.prefill_steps += 1
            self._scheduler.prefilled(chunk)
            if chunk.last:
                yield from self._sample([request], logits)

    def _decode(self) -> Iterator[Request]:
        """Give every decoding sequence its next token, or a single one its next few."""
        running, draft = self._grow()
        if draft:
            yield from self._verify(running[0], draft)
        elif running:
            newest = {self._slots[request.index]: request.ids[-1] for request in running}
            logits = self._forward.decode(newest)
            self._stats.decode_steps += 1
            yield from self._sample(running, logits)

    def _grow(self) -> tuple[list[Request], list[int]]:
        """Make room for the newest tokens; return the sequences that decode, and a draft for one.

        If memory is short, the draft is dropped first; then the youngest sequence is preempted.
        """
        running = self._running()
        draft = self._draft(running[0]) if len(running) == 1 else []
        while running:
            try:
                self._kv.ensure(
                    {self._slots[one.index]: len(one.ids) + len(draft) for one in running}
                )
                break
            except KVOutOfMemory:
                if draft:
                    draft = []
                    continue
                if self._scheduler.active == 1:
                    raise
            self._preempt()
            running = self._running()
        return running, draft

    def _running(self) -> list[Request]:
        return [self._requests[index] for index in self._scheduler.running]

    def _admit(self) -> bool:
        """Give the next prompt a slot with room for all of it; return whether that was possible."""
        index = self._scheduler.next()
        if index is None:
            return False
        self._slots[index] = self._kv.acquire()
        try:
            self._kv.ensure({self._slots[index]: len(self._requests[index].prompt)})
        except KVOutOfMemory:
            if not self._scheduler.active:
                raise
            self._release(index)
            self._scheduler.hold()
            return False
        self._scheduler.admit()
        return True

    def _preempt(self) -> None:
        index = self._scheduler.preempt()
        self._release(index)
        self._stats.preemptions += 1
        self._requests[index].preempt()

    def _draft(self, request: Request) -> list[int]:
        """Return proposed tokens, few enough that the token chosen after them still has room."""
        if self._drafter is None:
            return []
        proposed = self._drafter.propose(request.ids[-self._drafter.context :])
        return list(takewhile(self._may_draft, proposed[: request.left - 1]))

    def _may_draft(self, token: int) -> bool:
        return token not in self._undrafted

    def _verify(self, request: Request, draft: list[int]) -> Iterator[Request]:
        """Append the tokens that the sampler chooses, up to the first not in the draft.

        Every token is chosen as in a decode step: from the model's logits after the tokens before
        it, by the same sampler. A draft only saves forward passes.
        """
        slot, start = self._slots[request.index], len(request.ids) - 1
        logits = self._forward.verify(slot, [request.ids[-1], *draft], start)
        self._stats.verify_steps += 1
        self._stats.proposed += len(draft)
        now = time.perf_counter()
        for row, drafted in enumerate([*draft, None]):
            self._append(request, request.choose(logits[row : row + 1]), now)
            accepted = request.ids[-1] == drafted
            self._stats.accepted += accepted
            if request.finish is not None or not accepted:
                break
        if request.finish is not None:
            yield self._end(request)
        else:
            self._kv.truncate(slot, len(request.ids) - 1)

    def _sample(self, requests: list[Request], logits: Tensor) -> Iterator[Request]:
        """Append the next token to each request, by logits of shape [requests, vocabulary]."""
        plain = any(request.sampler.plain for request in requests)
        # Moved to the host all at once: each move waits for the device.
        largest = logits.float().argmax(-1).tolist() if plain else []
        tokens = [
            largest[row] if request.sampler.plain else request.choose(logits[row : row + 1])
            for row, request in enumerate(requests)
        ]
        now = time.perf_counter()
        for request, token in zip(requests, tokens, strict=True):
            self._append(request, token, now)
        for request in requests:
            if request.finish is not None:
                yield self._end(request)

    def _append(self, request: Request, token: int, now: float) -> None:
        final = request.append(token, now)
        if final is not None and self._on_token is not None:
            self._on_token(request.index, token, final)

    def _end(self, request: Request) -> Request:
        self._stats.recomputed += request.recomputed
        self._stats.diverged += request.diverged
        self._release(request.index)
        self._scheduler.finish(request.index)
        return request

    def _release(self, index: int) -> None:
        self._kv.release(self._slots.pop(index))
