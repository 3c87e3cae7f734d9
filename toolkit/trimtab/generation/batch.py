"""One call of the engine: prompts to their completions, a forward pass at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator

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
    """Runs requests to their ends, on the slots of a cache.

    Parameters
    ----------
    forward : Forward
    kv : VirtualKV
        With all its slots free; they are again afterwards, whatever happens.
    requests : list of Request
        By index.
    chunk : int
        Prompt tokens read at a time, and at most between two decode steps.
    drafter : Drafter, optional
        Asked while one sequence decodes alone.
    on_token : callable, optional
        Given the index of the prompt, the token, and the text that became final with it.
    stats : EngineStats
        Added to.
    """

    def __init__(
        self,
        forward: Forward,
        kv: VirtualKV,
        requests: list[Request],
        chunk: int,
        drafter: Drafter | None,
        on_token: OnToken | None,
        stats: EngineStats,
    ) -> None:
        self._forward, self._kv, self._stats = forward, kv, stats
        self._requests, self._chunk = requests, chunk
        self._drafter, self._on_token = drafter, on_token
        self._slots: dict[int, int] = {}  # by the index of the request
        sizes = [len(request.prompt) for request in requests]
        self._scheduler = Scheduler(sizes, len(kv.lengths), chunk)

    def run(self) -> Generator[Request, None, None]:
        """Yield the requests as they are finished."""
        try:
            while not self._scheduler.done:
                yield from self._read()
                yield from self._decode()
        finally:
            for index in list(self._slots):
                self._release(index)

    def _read(self) -> Iterator[Request]:
        """Admit and read prompts, as far as `chunk` tokens go."""
        room = self._chunk
        while self._scheduler.reading is not None or self._admit():
            chunk = self._scheduler.chunk()
            assert chunk is not None
            room -= chunk.end - chunk.start
            if room < 0:
                return
            request = self._requests[chunk.index]
            ids = request.prompt[chunk.start : chunk.end]
            logits = self._forward.read(self._slots[chunk.index], ids, chunk.start, prompt=True)
            self._stats.chunks += 1
            self._scheduler.read(chunk)
            if chunk.last:
                yield from self._extend([request], logits)

    def _decode(self) -> Iterator[Request]:
        """Give every sequence that decodes its next token, or one alone its next few."""
        running, draft = self._grow()
        if draft:
            yield from self._verify(running[0], draft)
        elif running:
            newest = {self._slots[request.index]: request.ids[-1] for request in running}
            logits = self._forward.decode(newest)[list(newest)]
            self._stats.decode_steps += 1
            yield from self._extend(running, logits)

    def _grow(self) -> tuple[list[Request], list[int]]:
        """Make room for the newest tokens, and return whose they are, and the draft behind them.

        While memory is short a draft is dropped, then the youngest sequence put back.
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
            self._put_back()
            running = self._running()
        return running, draft

    def _running(self) -> list[Request]:
        return [self._requests[index] for index in self._scheduler.running]

    def _admit(self) -> bool:
        """Give the next prompt a slot with room for all of it, and say whether there was."""
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

    def _put_back(self) -> None:
        index = self._scheduler.put_back()
        self._release(index)
        self._stats.preemptions += 1
        self._requests[index].put_back()

    def _draft(self, request: Request) -> list[int]:
        if self._drafter is None:
            return []
        # Room is left for the token that comes out behind the draft.
        return self._drafter.propose(request.ids[-self._drafter.context :])[: request.left - 1]

    def _verify(self, request: Request, draft: list[int]) -> Iterator[Request]:
        """Accept as much of a draft as the sampler chooses too, and its choice behind that."""
        slot, start = self._slots[request.index], len(request.ids) - 1
        ids = [request.ids[-1], *draft]
        logits = self._forward.read(slot, ids, start, prompt=False, keep=len(ids))
        self._stats.drafted_steps += 1
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

    def _extend(self, requests: list[Request], logits: Tensor) -> Iterator[Request]:
        """Append the next token to requests, by logits of shape [requests, vocabulary]."""
        plain = any(request.sampler.plain for request in requests)
        # All of them at once: to look at a number is to wait for the device.
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
        self._stats.replayed += request.replayed
        self._stats.diverged += request.diverged
        self._release(request.index)
        self._scheduler.finish(request.index)
        return request

    def _release(self, index: int) -> None:
        self._kv.release(self._slots.pop(index))
