"""Append and attention of a decode step, on a virtual cache and on transformers' own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, StaticCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from kv_parts.layer import states
from kv_parts.setting import (
    CACHES,
    Options,
    Record,
    label,
    lacking,
    layer_bytes,
    llama,
    open_kv,
)
from kv_parts.timing import WARM_UP, Samples, compared, interleave
from trimtab.vattention.attention import NAME
from trimtab.vattention.cache import VirtualCache
from trimtab.vattention.settings import Layout
from trimtab.vattention.virtual_kv import VirtualKV
from trimtab_kernels.decode_attention import append_kv, decode_attention

Step = Callable[[], Tensor]
ATTENTION = {"virtual_kernel": ALL_ATTENTION_FUNCTIONS[NAME]}


def attention(options: Options) -> Iterator[Record]:
    """Time append and attention of a decode step, in `decode_layers` layers.

    `virtual` runs our kernels, as the engine does. `virtual_kernel` runs the attention that stock
    `generate` uses under `decode_kernel`. The others run transformers' SDPA attention, as stock
    `generate` does: on a virtual cache, a dynamic one, and a static one. The static cache has just
    the room that it will need; that is its best case, as it reads all its room at every step.
    """
    for layout, page in options.timed:
        place = {
            "cache": label(layout, page),
            "batch": options.batch,
            "context": options.context,
            "layers": options.decode_layers,
        }
        tokens = options.batch * (options.context + WARM_UP + options.samples)
        needed = (CACHES * options.decode_layers + 2) * tokens * layer_bytes(options)
        if reason := lacking(needed, options, "lower --decode-layers, --batch or --context"):
            yield place | {"skipped": reason}
            continue
        times, differences = decode(options, layout, page)
        for decoder, samples in times.items():
            yield place | {
                "decoder": decoder,
                **compared(times, decoder, options.seed),
                "largest_difference": differences[decoder],
                "samples_us": samples,
            }


def decode(options: Options, layout: Layout, page: int) -> tuple[Samples, dict[str, float]]:
    """Return the step times of each decoder, and how far its results are from those of dynamic."""
    layers, batch = options.decode_layers, options.batch
    most = options.context + WARM_UP + options.samples
    config = llama(options, layers)
    with ExitStack() as stack:
        changes = {"layers": layers, "max_len": most}
        kv = stack.enter_context(open_kv(options, batch, layout, page, **changes))

        def virtual() -> VirtualCache:
            cache = VirtualCache(
                config, batch=batch, max_len=most, dtype=options.dtype, device=options.device,
                layout=layout, page_group=page,
            )  # fmt: skip
            return stack.enter_context(cache)

        caches: dict[str, Cache] = {
            "virtual_kernel": virtual(),
            "virtual_sdpa": virtual(),
            "dynamic": DynamicCache(config=config),
            "static": StaticCache(config, max_cache_len=most),
        }
        fill(options, kv, caches.values())
        token = Token(options)
        steps = {"virtual": token.in_slots(kv)}
        for name, cache in caches.items():
            attend = ATTENTION.get(name, sdpa_attention_forward)
            steps[name] = token.in_cache(cache, attend, most if name == "static" else None)
        results: dict[str, Tensor] = {}

        def noting(name: str) -> Callable[[], Any]:
            return lambda: results.update({name: steps[name]()})

        times = interleave({name: noting(name) for name in steps}, options.samples, options.device)
    expected = results["dynamic"].float()
    return times, {
        name: float((result.float() - expected).abs().max()) for name, result in results.items()
    }


def fill(options: Options, kv: VirtualKV, caches: Iterable[Cache]) -> None:
    """Put the same context into all caches."""
    kv.ensure({kv.acquire(): options.context for _ in range(options.batch)})
    for layer in range(options.decode_layers):
        key, value = (states(options, options.batch, options.context) for _ in "kv")
        kv.keys[layer][:, : options.context] = key.transpose(1, 2)
        kv.values[layer][:, : options.context] = value.transpose(1, 2)
        for cache in caches:
            cache.update(key, value, layer)


class Token:
    """Query, key and value of one token per sequence, the same in all layers."""

    def __init__(self, options: Options) -> None:
        shape = options.batch, options.heads, options.head_dim
        self._query = torch.randn(shape, dtype=options.dtype, device=options.device)
        self._key, self._value = (states(options, options.batch, 1) for _ in "kv")
        self._scale = options.head_dim**-0.5
        groups = options.heads // options.kv_heads
        self._module: Any = SimpleNamespace(num_key_value_groups=groups, is_causal=True)

    def in_slots(self, kv: VirtualKV) -> Step:
        """Return a step of our kernels, which yields the last layer's [batch, heads, head_dim]."""
        key, value = self._key[:, :, 0], self._value[:, :, 0]

        def step() -> Tensor:
            kv.ensure({slot: kv.length(slot) + 1 for slot in range(len(self._query))})
            for keys, values in zip(kv.keys, kv.values, strict=True):
                append_kv(keys, values, key, value, kv.lengths)
                result = decode_attention(self._query, keys, values, kv.lengths, self._scale)
            return result

        return step

    def in_cache(self, cache: Cache, attend: Callable[..., Any], room: int | None) -> Step:
        """Return a step of an attention function, masking the unused `room` of a static cache."""
        query, device = self._query[:, :, None], self._query.device

        def step() -> Tensor:
            mask = None
            if room is not None:
                seen = torch.arange(room, device=device) <= cache.get_seq_length()
                mask = seen[None, None, None]
            for layer in range(len(cache.layers)):
                shown = cache.update(self._key, self._value, layer)
                result, _ = attend(self._module, query, *shown, mask, scaling=self._scale)
            return result[:, 0]

        return step
