"""A given text, read on the engine's cache instead of generated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from trimtab.generation.forward import Forward
from trimtab.vattention.virtual_kv import VirtualKV


def expected(
    forward: Forward, kv: VirtualKV, prompt: Sequence[int], text: Sequence[int], chunk: int
) -> Tensor:
    """Return the logits of every token of a text behind a prompt, see `Engine.logits`.

    Parameters
    ----------
    kv : VirtualKV
        With a free slot; it is free again afterwards, whatever happens.
    chunk : int
        Tokens read in one forward pass.

    Raises
    ------
    KVOutOfMemory
        If the cache has no pages for the text.
    """
    slot, behind = kv.acquire(), text[:-1]

    def read(ids: Sequence[int], start: int, prompt: bool) -> Iterator[Tensor]:
        for begin in range(0, len(ids), chunk):
            part = ids[begin : begin + chunk]
            keep = 1 if prompt else len(part)
            yield forward.read(slot, part, start + begin, prompt=prompt, keep=keep)

    try:
        kv.ensure({slot: len(prompt) + len(behind)})
        *_, first = read(prompt, 0, True)
        return torch.cat([first, *read(behind, len(prompt), False)])
    finally:
        kv.release(slot)
