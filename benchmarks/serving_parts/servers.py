"""What answers requests: transformers in two ways, and the engine with a stack of methods."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from decode_parts.contenders import Setting
from kv_parts.stepping import twin
from transformers import ContinuousBatchingConfig, GenerationConfig

from serving_parts.workload import PROMPT, Answer, Request
from trimtab.generation.transformers import Clock, plain_generation

PAGE = 16  # tokens
NO_TOKEN = -1

Serve = Callable[[Sequence[Request]], Answer]


@dataclass(frozen=True)
class Server:
    """One way to answer requests; `note` says what runs it."""

    name: str
    serve: Serve
    note: str = ""


def padded(setting: Setting) -> Server:
    """Return `generate` on one batch, padded on the left, which ends with the longest text."""
    model: Any = setting.loaded.model

    def serve(given: Sequence[Request]) -> Answer:
        longest = max(len(one.prompt) for one in given)
        ids = torch.zeros(len(given), longest, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, one in enumerate(given):
            ids[row, longest - len(one.prompt) :] = torch.tensor(one.prompt)
            mask[row, longest - len(one.prompt) :] = 1
        clock, started = Clock(), time.perf_counter()
        with plain_generation(model, setting.loaded.tokenizer):
            output = model.generate(
                input_ids=ids,
                attention_mask=mask,
                do_sample=False,
                max_new_tokens=max(one.new for one in given),
                streamer=clock,
            )
        ended = time.perf_counter() - started
        tokens = [
            row[longest : longest + one.new].tolist()
            for row, one in zip(output, given, strict=True)
        ]
        return Answer(ended, [clock.times[1] - started] * len(given), tokens)

    return Server("transformers, padded generate", serve)


def continuous(setting: Setting, longest: int, count: int) -> Server:
    """Return transformers' continuous batching on a paged cache, with room for all requests.

    Blocks are not shared between requests, or those of one round would find what the last left.
    """
    model: Any = twin(setting.loaded.model)
    limits = GenerationConfig(do_sample=False, eos_token_id=NO_TOKEN, pad_token_id=0)
    paging = ContinuousBatchingConfig(
        page_size=PAGE,
        num_blocks=count * -(-longest // PAGE),
        max_batch_tokens=count * PROMPT[1],
        max_requests_per_batch=count,
        allow_block_sharing=False,
        use_async_batching=False,
    )
    manager = model.init_continuous_batching(limits, paging)

    def serve(given: Sequence[Request]) -> Answer:
        manager.start()
        try:
            started = time.perf_counter()
            names = [
                manager.add_request(one.prompt, max_new_tokens=one.new, record_timestamps=True)
                for one in given
            ]
            found: dict[str, Any] = {}
            while len(found) < len(names):
                result = manager.get_result(timeout=60)
                if result is None or result.error is not None:
                    raise RuntimeError(f"no result of continuous batching: {result}")
                found[result.request_id] = result
        finally:
            manager.stop(block=True, keep_for_next_session=True)
        results = [found[name] for name in names]
        ended = max(result.timestamps[-1] for result in results) - started
        first = [result.timestamps[0] - started for result in results]
        return Answer(ended, first, [result.generated_tokens for result in results])

    return Server("transformers, continuous batching", serve)


def engines(setting: Setting, longest: int, count: int) -> Iterator[Server]:
    """Yield the engine on the unmodified model, with LaRoSA, and with drafts too."""
    sparsity = f"larosa {setting.options.sparsity:g}"
    yield _engine(setting, "vattention", longest, count)
    yield _engine(setting, f"{sparsity}, vattention", longest, count, "larosa")
    yield _engine(setting, "all, drafting", longest, count, "adaptivocab", "larosa")


def _engine(setting: Setting, name: str, longest: int, count: int, *methods: str) -> Server:
    optimized = setting.apply(*methods)
    engine = setting.undo.enter_context(optimized.engine(slots=count, max_len=longest))

    def serve(given: Sequence[Request]) -> Answer:
        started = time.perf_counter()
        found = engine.generate(
            [one.prompt for one in given], max_new_tokens=[one.new for one in given]
        )
        ended = max(one.times[-1] for one in found) - started
        return Answer(
            ended, [one.times[0] - started for one in found], [one.tokens for one in found]
        )

    return Server(name, serve, engine.decode_step)
