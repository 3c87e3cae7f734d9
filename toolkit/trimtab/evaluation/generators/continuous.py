"""Many requests together in transformers' continuous batching, on its paged cache."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from transformers import ContinuousBatchingConfig, GenerationConfig, PreTrainedModel
from transformers.generation.continuous_batching.scheduler import (
    SCHEDULER_MAPPING,
    FIFOScheduler,
)
from transformers.generation.continuous_batching.utils import logger

from trimtab.evaluation.cache_memory import CacheMemory, resident_bytes
from trimtab.evaluation.generators.server import Answer, Request, require_all
from trimtab.evaluation.memory import twin

PAGE = 16  # tokens
TRASH = 2  # blocks beside those of texts, for what padding writes, at most
CHUNK = 2048  # the most tokens in one forward pass
NO_TOKEN = -1
WARM_UP = 2  # tokens
WATCHED = "trimtab"


class WatchedScheduler(FIFOScheduler):
    """transformers' own scheduler, which also notes how much is in the cache, one call at a time.

    Attributes
    ----------
    most_tokens, at_once : int
        The most tokens, and the most texts, at a time.
    preempted : int
        How often a text had to wait again.
    """

    def reset(self) -> None:
        """Begin a call."""
        super().reset()
        self.most_tokens = self.at_once = self.preempted = 0
        self._running: set[str] = set()

    def schedule_batch(self, token_budget: int, cache_budget: int) -> Any:
        """Schedule a step as transformers does."""
        self.preempted += len(self._running & self.waiting_requests.keys())
        scheduled = super().schedule_batch(token_budget, cache_budget)
        active, step = self.active_requests, scheduled[2]
        tokens = step + sum(one.current_len() for one in active.values())
        self.most_tokens = max(self.most_tokens, tokens)
        self.at_once = max(self.at_once, len(active))
        self._running = set(active)
        return scheduled


SCHEDULER_MAPPING[WATCHED] = WatchedScheduler


@contextmanager
def quiet() -> Iterator[None]:
    """Have continuous batching log nothing within the block: it says what it does at every start.

    What goes wrong is raised by `ContinuousServer`.
    """
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


class ContinuousServer:
    """Answers requests with `init_continuous_batching`; see `Server`.

    It cannot be made to produce a given text: what requests give is left out. Blocks are not shared
    between requests, or those of one call would find what the last left.

    Parameters
    ----------
    model : PreTrainedModel
        The manager runs on a copy with the same weights, whose attention it may change.
    requests : sequence of Request
        What it will have room for, at most.
    budget : int, optional
        The most bytes of keys and values; no limit where None.
    token_bytes : int
        Bytes of the keys and values of a token.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        requests: Sequence[Request],
        budget: int | None = None,
        token_bytes: int = 1,
    ) -> None:
        blocks = len(requests) * -(-max(one.tokens for one in requests) // PAGE)
        if budget is not None:
            blocks = min(blocks, max(0, budget // (PAGE * token_bytes) - TRASH))
        self._token_bytes = token_bytes
        self._capacity = blocks * PAGE
        prompts = sum(len(request.prompt) for request in requests)
        runs: Any = twin(model)
        self._manager = runs.init_continuous_batching(
            GenerationConfig(do_sample=False, eos_token_id=NO_TOKEN, pad_token_id=0),
            ContinuousBatchingConfig(
                page_size=PAGE,
                num_blocks=blocks,
                max_batch_tokens=max(min(prompts, CHUNK), len(requests)),
                max_requests_per_batch=len(requests),
                allow_block_sharing=False,
                scheduler_type=WATCHED,
            ),
        )

    @property
    def capacity(self) -> int:
        """See `Server.capacity`."""
        return self._capacity

    def close(self) -> None:
        """Free its cache."""
        self._manager.destroy()

    def warm_up(self, requests: Sequence[Request]) -> None:
        """See `Server.warm_up`."""
        self.serve([request.begun(WARM_UP) for request in requests])

    def serve(self, requests: Sequence[Request]) -> Answer:
        """See `Server.serve`.

        Raises
        ------
        RuntimeError
            If the manager gives up a request.
        """
        manager = self._manager
        manager.start()
        try:
            arrived = time.perf_counter()
            names = [
                manager.add_request(one.prompt, max_new_tokens=one.new, record_timestamps=True)
                for one in requests
            ]
            found: dict[str, Any] = {}
            while len(found) < len(names):
                result = manager.get_result(timeout=1)
                if result is not None and result.error is not None:
                    raise RuntimeError(result.error)
                if result is None and not manager.is_running():
                    raise RuntimeError("continuous batching stopped before all texts were there")
                if result is not None:
                    found[result.request_id] = result
        finally:
            manager.stop(block=True, keep_for_next_session=True)
        results = [found[name] for name in names]
        tokens = [result.generated_tokens for result in results]
        require_all([Request(one.prompt, one.new) for one in requests], tokens)
        scheduler, cache = manager.batch_processor.scheduler, manager.batch_processor.cache
        storage: Tensor = cache.cache_tensor
        host = storage.device.type == "cpu"
        return Answer(
            seconds=max(result.timestamps[-1] for result in results) - arrived,
            first=[result.timestamps[0] - arrived for result in results],
            tokens=tokens,
            at_once=scheduler.at_once,
            preempted=scheduler.preempted,
            memory=CacheMemory(
                scheduler.most_tokens * self._token_bytes,
                storage.nbytes,
                resident_bytes([storage.untyped_storage()]) if host else None,
            ),
        )
