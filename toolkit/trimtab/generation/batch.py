"""One call of the engine: from prompts to completions, one forward pass at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping
from itertools import accumulate

from torch import Tensor

from trimtab.generation.drafts import Drafts
from trimtab.generation.forward import Forward, Span
from trimtab.generation.request import Request
from trimtab.generation.sampling import token_of
from trimtab.generation.scheduler import Chunk, Scheduler
from trimtab.generation.stats import EngineStats
from trimtab.vattention.pages import KVOutOfMemory
from trimtab.vattention.virtual_kv import VirtualKV

OnToken = Callable[[int, int, str], object]
Choose = Callable[[Request, int], int]


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
    apart : bool
        Whether no text may depend on those beside it: every prompt is prefilled in passes of its
        own, instead of several in one.
    drafts : Drafts, optional
        What to draft. Where the forward pass takes one text at a time, only while a single sequence
        decodes, and not if `apart`: a text would depend on when it is alone.
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
        apart: bool,
        drafts: Drafts | None,
        on_token: OnToken | None,
        stats: EngineStats,
    ) -> None:
        self._forward, self._kv, self._stats = forward, kv, stats
        self._requests, self._chunk, self._apart = requests, chunk, apart
        self._drafts, self._on_token = drafts, on_token
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
        chunks: list[Chunk] = []
        room = self._chunk
        while room and (self._scheduler.prefilling is not None or self._admit()):
            chunk = self._scheduler.chunk()
            assert chunk is not None
            if chunk.end - chunk.start > room:
                break
            room -= chunk.end - chunk.start
            self._scheduler.prefilled(chunk)
            chunks.append(chunk)
        passes = [[chunk] for chunk in chunks] if self._apart else [chunks] * bool(chunks)
        for packed in passes:
            logits = self._forward.prefill([self._span(chunk) for chunk in packed])
            self._stats.prefill_steps += 1
            # Only the newest prompt may go on after the pass.
            requests = [self._requests[chunk.index] for chunk in packed if chunk.last]
            choose = self._chosen_by(requests, {}, logits[: len(requests)])
            yield from self._sample(requests, {}, choose)

    def _span(self, chunk: Chunk) -> Span:
        ids = self._requests[chunk.index].prompt[chunk.start : chunk.end]
        return Span(self._slots[chunk.index], ids, chunk.start)

    def _decode(self) -> Iterator[Request]:
        """Give every decoding sequence its next token, or the next few that were drafted."""
        running, drafts = self._grow()
        if not running:
            return
        spans = [
            Span(
                self._slots[request.index],
                [request.ids[-1], *drafts.get(request.index, [])],
                len(request.ids) - 1,
            )
            for request in running
        ]
        if self._forward.together and all(request.sampler.plain for request in running):
            choose = self._as_given(self._forward.choose(spans))
        elif drafts:
            choose = self._chosen_by(running, drafts, self._forward.verify(spans))
        else:
            newest = {span.slot: span.ids[0] for span in spans}
            choose = self._chosen_by(running, drafts, self._forward.decode(newest))
        if drafts:
            self._stats.verify_steps += 1
        else:
            self._stats.decode_steps += 1
        yield from self._sample(running, drafts, choose)

    def _grow(self) -> tuple[list[Request], dict[int, list[int]]]:
        """Make room for the newest tokens; return the sequences that decode, and their drafts.

        If memory is short, drafts are dropped first; then the youngest sequence is preempted.
        """
        running = self._running()
        drafts: dict[int, list[int]] = {}
        alone = len(running) == 1 and not self._apart
        if self._drafts is not None and (alone or self._forward.together):
            drafts = self._drafts.choose(running)
        while running:
            try:
                self._kv.ensure(
                    {
                        self._slots[one.index]: len(one.ids) + len(drafts.get(one.index, []))
                        for one in running
                    }
                )
                break
            except KVOutOfMemory:
                if drafts:
                    drafts = {}
                    continue
                if self._scheduler.active == 1:
                    raise
            self._preempt()
            running = self._running()
        return running, drafts

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

    @staticmethod
    def _as_given(tokens: list[int]) -> Choose:
        return lambda _, row: tokens[row]

    @staticmethod
    def _chosen_by(
        requests: list[Request], drafts: Mapping[int, list[int]], logits: Tensor
    ) -> Choose:
        """Return how a request chooses by a row of logits [rows, vocabulary].

        What is known of all rows comes to the host in one move, as each waits for the device. Only
        what is drawn after a drafted token is not, as it hangs on that being accepted.
        """
        largest = any(request.sampler.plain for request in requests)
        chosen = logits.float().argmax(-1) if largest else logits.new_empty(len(logits)).long()
        drawn = {
            row: request
            for request, row in zip(requests, _first_rows(requests, drafts), strict=True)
            if not request.sampler.plain
        }
        for row, request in drawn.items():
            chosen[row : row + 1] = request.draw(logits[row : row + 1])
        tokens = chosen.tolist()

        def choose(request: Request, row: int) -> int:
            if request.sampler.plain or row in drawn:
                return token_of(tokens[row])
            return token_of(int(request.draw(logits[row : row + 1])))

        return choose

    def _sample(
        self, requests: list[Request], drafts: Mapping[int, list[int]], choose: Choose
    ) -> Iterator[Request]:
        """Append the tokens that the samplers choose: of a draft, up to the first not in it.

        Every token is chosen as in a step without drafts: from the model's logits after the tokens
        before it, by the same sampler. A draft only saves forward passes.

        Parameters
        ----------
        drafts : mapping of int to list of int
            By the index of the request.
        choose : callable
            Given a request and a row: one for the newest token of each request, followed by one
            for each token of its draft.
        """
        rows = _first_rows(requests, drafts)
        firsts = [
            request.follow(choose(request, row))
            for request, row in zip(requests, rows, strict=True)
        ]
        now = time.perf_counter()
        for request, row, token in zip(requests, rows, firsts, strict=True):
            self._append(request, token, now)
            if draft := drafts.get(request.index):
                accepted = 0
                for drafted in draft:
                    if request.ids[-1] != drafted:
                        break
                    accepted += 1
                    if request.finish is not None:
                        break
                    self._append(request, request.follow(choose(request, row + accepted)), now)
                if accepted and not request.sampler.plain:
                    request.put_off(now, time.perf_counter())
                self._verified(request, len(draft), accepted)
        for request in requests:
            if request.finish is not None:
                yield self._end(request)

    def _verified(self, request: Request, drafted: int, accepted: int) -> None:
        assert self._drafts is not None
        self._stats.verified(drafted, accepted)
        self._drafts.judge(request.index, drafted, accepted)
        if request.finish is None:
            self._kv.truncate(self._slots[request.index], len(request.ids) - 1)

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
        if self._drafts is not None:
            self._drafts.forget(index)


def _first_rows(requests: list[Request], drafts: Mapping[int, list[int]]) -> list[int]:
    """Return the row of each request's newest token; those of its draft follow."""
    sizes = [1 + len(drafts.get(request.index, [])) for request in requests]
    return [end - size for end, size in zip(accumulate(sizes), sizes, strict=True)]
