"""The logits of a given text, computed on the engine's cache instead of generating the text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from trimtab.generation.forward import Forward, Span
from trimtab.vattention.virtual_kv import VirtualKV


def text_logits(
    forward: Forward, kv: VirtualKV, prompt: Sequence[int], text: Sequence[int], chunk: int
) -> Tensor:
    """Return the logits of every token of a text that follows a prompt; see `Engine.logits`.

    Parameters
    ----------
    forward : Forward
    kv : VirtualKV
        With a free slot, which is free again afterwards, whatever happens.
    prompt, text : sequence of int
    chunk : int
        The most tokens in one forward pass.

    Raises
    ------
    KVOutOfMemory
        If the cache has no pages for the text.
    """
    slot = kv.acquire()
    try:
        kv.ensure({slot: len(prompt) + len(text) - 1})
        for start, ids in _chunks(prompt, chunk):
            first = forward.prefill([Span(slot, ids, start)])
        rest = [
            forward.verify([Span(slot, ids, len(prompt) + start)])
            for start, ids in _chunks(text[:-1], chunk)
        ]
        return torch.cat([first, *rest])
    finally:
        kv.release(slot)


def _chunks(ids: Sequence[int], size: int) -> Iterator[tuple[int, Sequence[int]]]:
    """Yield consecutive chunks of at most `size` tokens, each with the index of its first."""
    for start in range(0, len(ids), size):
        yield start, ids[start : start + size]
