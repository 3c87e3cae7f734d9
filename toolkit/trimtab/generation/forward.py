"""The two forward passes of generation: one token of every slot, or several of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from trimtab.generation.steps import DecodeStep, ReadStep, Step
from trimtab.vattention.virtual_kv import VirtualKV


class Forward:
    """Runs a model that uses the attention function `attention.NAME`, on a cache.

    The decode step is always of one row a slot, idle ones included, and reads tokens, lengths and
    cache from tensors that never move.

    Parameters
    ----------
    model : PreTrainedModel
    kv : VirtualKV
    """

    def __init__(self, model: PreTrainedModel, kv: VirtualKV) -> None:
        self._model: Any = model
        self._kv = kv
        self.device = kv.lengths.device
        slots = len(kv.lengths)
        pinned = self.device.type == "cuda"
        # Row 0: the slots' newest tokens; row 1: 1 where a slot decodes. Filled on the host.
        self._host = torch.zeros(2, slots, dtype=torch.int64, pin_memory=pinned)
        self._inputs = self._host.to(self.device)
        self._lengths = torch.zeros(slots, dtype=torch.int32, device=self.device)
        self._positions = torch.zeros(slots, 1, dtype=torch.int64, device=self.device)
        self._step = DecodeStep(kv.keys, kv.values, self._lengths)
        # A mask of four dimensions is handed through as it is. With none, GPT-2 would look for
        # padding in every input, which waits for the device, and OPT would make one.
        self._no_mask = torch.zeros(1, 1, 1, 1, dtype=torch.bool, device=self.device)

    def decode(self, newest: Mapping[int, int]) -> Tensor:
        """Append the newest tokens of some slots and return the logits behind them.

        Parameters
        ----------
        newest : mapping of int to int
            By slot, the token; the cache's length counts it already.

        Returns
        -------
        Tensor
            Of shape [slots, vocabulary]; rows of other slots mean nothing.
        """
        inputs = self._host.numpy()
        inputs[:] = 0
        for slot, token in newest.items():
            inputs[:, slot] = token, 1
        if self._inputs is not self._host:
            self._inputs.copy_(self._host, non_blocking=True)
        tokens, decoding = self._inputs
        torch.mul(self._kv.lengths, decoding, out=self._lengths)
        torch.sub(self._lengths, 1, out=self._positions[:, 0]).clamp_(min=0)
        return self._run(tokens[:, None], self._positions, self._step, 1)[:, 0]

    def read(
        self, slot: int, ids: Sequence[int], start: int, *, prompt: bool, keep: int = 1
    ) -> Tensor:
        """Write tokens into a slot from position `start` on, and return the last `keep` logits.

        Parameters
        ----------
        slot, start : int
            The cache's length covers the tokens already.
        ids : sequence of int
        prompt : bool
            Whether the tokens are a prompt's.
        keep : int
            At least 1.

        Returns
        -------
        Tensor
            Of shape [keep, vocabulary].
        """
        end = start + len(ids)
        tokens = torch.tensor([ids], device=self.device)
        positions = torch.arange(start, end, device=self.device)[None]
        step = ReadStep(self._kv.keys, self._kv.values, slot, start, end, prompt)
        return self._run(tokens, positions, step, keep)[0]

    def _run(self, tokens: Tensor, positions: Tensor, step: Step, keep: int) -> Tensor:
        logits: Tensor = self._model(
            input_ids=tokens,
            position_ids=positions,
            attention_mask=self._no_mask,
            use_cache=False,
            logits_to_keep=keep,
            step=step,
        ).logits
        return logits
