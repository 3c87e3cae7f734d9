"""Decode steps of a whole model after a long context: the same text in every row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel, StaticCache

from kv_parts.generating import model_config
from kv_parts.setting import CACHES, Options, Record, lacking
from kv_parts.timing import WARM_UP, compared, interleave
from trimtab.evaluation.memory import twin
from trimtab.generation.attention import NAME
from trimtab.generation.executor import Executor
from trimtab.generation.forward import Forward
from trimtab.models.facts import CacheShape
from trimtab.models.loading import load_model
from trimtab.vattention.attention import decode_kernel, using_attention
from trimtab.vattention.cache import VirtualCache
from trimtab.vattention.virtual_kv import VirtualKV

Step = Callable[[], Tensor]
States = list[tuple[Tensor, Tensor]]


@torch.inference_mode()
def steps(options: Options) -> Iterator[Record]:
    """Time forward passes of one token per row, on five caches, each with its own attention.

    `engine` is a step of the engine, and `virtual_kernel` that of stock `generate` under
    `decode_kernel`. The others use the model's own attention.
    """
    loaded = load_model(model_config(options))
    model, batch = loaded.model, options.batch
    place = {"model": loaded.name, "batch": batch, "context": options.context}
    prefilled = DynamicCache()
    prompt = torch.randint(model.config.vocab_size, (1, options.context), device=options.device)
    model(prompt, past_key_values=prefilled, logits_to_keep=1)
    states = [(layer.keys, layer.values) for layer in prefilled.layers]
    needed = CACHES * 2 * batch * sum(keys.nbytes for keys, _ in states)
    if reason := lacking(needed, options, "lower --batch or --context"):
        yield place | {"skipped": reason}
        return
    tokens = torch.randint(model.config.vocab_size, (batch, 1), device=options.device)
    with ExitStack() as stack:
        runs = decoders(stack, model, states, tokens, options)
        chosen: dict[str, Tensor] = {}

        def noting(name: str) -> Callable[[], Any]:
            return lambda: chosen.update({name: runs[name]().argmax(-1)})

        times = interleave({name: noting(name) for name in runs}, options.samples, options.device)
    for name in times:
        same = (chosen[name] == chosen["dynamic"]).float().mean()
        yield place | {
            "decoder": name,
            **compared(times, name, options.seed),
            "same_tokens_share": float(same),
            "samples_us": times[name],
        }


def decoders(
    stack: ExitStack, model: PreTrainedModel, states: States, tokens: Tensor, options: Options
) -> dict[str, Step]:
    """Return steps by name, on caches with the same contents."""
    most = options.context + WARM_UP + options.samples

    def virtual() -> VirtualCache:
        shape = {"batch": len(tokens), "max_len": most}
        cache = VirtualCache(model.config, **shape, dtype=model.dtype, device=options.device)
        return stack.enter_context(cache)

    caches: dict[str, Cache] = {
        "virtual_kernel": virtual(),
        "virtual": virtual(),
        "dynamic": DynamicCache(config=model.config),
        "static": StaticCache(model.config, max_cache_len=most),
    }
    fill(caches.values(), states, len(tokens))
    with_kernel = twin(model)
    stack.enter_context(decode_kernel(with_kernel))
    steps = {"engine": in_engine(stack, twin(model), states, tokens, most)[0]}
    for name, cache in caches.items():
        steps[name] = in_cache(with_kernel if name == "virtual_kernel" else model, cache, tokens)
    # The steps hold tensors over the engine's cache, which is closed after this.
    stack.callback(steps.clear)
    return steps


def fill(caches: Iterable[Cache], states: States, rows: int) -> None:
    """Put the context into all rows of the caches."""
    for layer, pair in enumerate(states):
        for cache in caches:
            cache.update(*(part.expand(rows, -1, -1, -1) for part in pair), layer)


def in_cache(model: PreTrainedModel, cache: Cache, tokens: Tensor) -> Step:
    """Return a step of the model on a transformers cache."""
    run: Any = model
    return lambda: run(tokens, past_key_values=cache).logits[:, -1]


def in_engine(
    stack: ExitStack, model: PreTrainedModel, states: States, tokens: Tensor, most: int
) -> tuple[Step, Executor]:
    """Return a step of the engine, and what runs it."""
    shape = CacheShape.of(model.config)
    sizes = len(shape.windows), len(tokens), most, shape.kv_heads, shape.head_dim
    kv = stack.enter_context(VirtualKV(*sizes, model.dtype, device=tokens.device))
    context = states[0][0].shape[2]
    kv.ensure({kv.acquire(): context for _ in tokens})
    for layer, (keys, values) in enumerate(states):
        kv.keys[layer][:, :context] = keys.transpose(1, 2)
        kv.values[layer][:, :context] = values.transpose(1, 2)
    stack.enter_context(using_attention(model, NAME))
    forward = Forward(model, kv)
    newest = dict(enumerate(tokens[:, 0].tolist()))

    def step() -> Tensor:
        kv.ensure({slot: kv.length(slot) + 1 for slot in newest})
        return forward.decode(newest)

    return step, forward.executor
