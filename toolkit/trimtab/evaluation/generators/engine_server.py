"""Many requests together on our engine."""

from __future__ import annotations

import time
from collections.abc import Sequence

from trimtab.evaluation.cache_memory import CacheMemory
from trimtab.evaluation.generators.server import Answer, Request, require_all
from trimtab.evaluation.work import spent
from trimtab.generation import Engine
from trimtab.generation.prompts import as_batch
from trimtab.generation.request import Completion


class EngineServer:
    """Answers requests with an engine that runs; see `Server`.

    The first answer is an untimed one: the cache has no pages yet then, and is counted at every
    step.

    Parameters
    ----------
    engine : Engine
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._at_once = 0
        self._memory = CacheMemory(0, 0, 0)

    @property
    def capacity(self) -> int:
        """See `Server.capacity`."""
        return self.engine.capacity

    def warm_up(self, requests: Sequence[Request]) -> None:
        """See `Server.warm_up`."""
        self._generate(requests, watched=True)

    def serve(self, requests: Sequence[Request]) -> Answer:
        """See `Server.serve`."""
        before, arrived = self.engine.step_seconds, time.perf_counter()
        found = self._generate(requests)
        tokens = [one.tokens for one in found]
        require_all(requests, tokens)
        return Answer(
            seconds=max(one.times[-1] for one in found) - arrived,
            first=[one.times[0] - arrived for one in found],
            tokens=tokens,
            at_once=self._at_once,
            preempted=sum(one.preemptions for one in found),
            memory=self._memory,
            step_seconds=spent(before, self.engine.step_seconds),
        )

    def _generate(self, requests: Sequence[Request], *, watched: bool = False) -> list[Completion]:
        given = [request.given for request in requests]
        return self.engine.generate(
            as_batch([request.prompt for request in requests]),
            max_new_tokens=[request.new for request in requests],
            given=given if any(given) else (),
            on_token=self._watch if watched else None,
        )

    def _watch(self, index: int, token: int, text: str) -> None:
        kv = self.engine.kv
        now, most = kv.stats(), self._memory
        self._memory = CacheMemory(
            max(most.live, now.live),
            max(most.committed, now.committed),
            max(most.measured or 0, now.measured),
        )
        self._at_once = max(self._at_once, int((kv.lengths > 0).sum()))
