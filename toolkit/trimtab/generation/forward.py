"""The forward passes of generation: one token of every slot, or several tokens of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from itertools import accumulate
from numbers import Number
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks
from transformers import PreTrainedModel

from trimtab.errors import MisfitError, TrimtabError
from trimtab.generation.attention import NAME
from trimtab.generation.executor import MOST_ROWS, Executor, executor_for
from trimtab.generation.steps import DecodeStep, ExtendStep, PackedStep, Step
from trimtab.models.adapter import adapter_for
from trimtab.models.changes import changes_of
from trimtab.models.configs import configs_beside
from trimtab.models.predictions import require_finite
from trimtab.models.state import is_compiled, uncompiled, without_cudnn_attention
from trimtab.vattention.virtual_kv import VirtualKV

SIMPLE = {bool, int, float, str, type(None)}
COLLECTIONS = list, tuple, dict


class Span(NamedTuple):
    """Consecutive tokens of a slot, from the position `start` on.

    They are written into the cache, whose length must include them already.
    """

    slot: int
    ids: Sequence[int]
    start: int


class Forward:
    """Runs a model on a cache, with the attention function named `attention.NAME`.

    Decode steps, and short given texts, run on an executor of the model's decode plan where there
    is one. Otherwise a decode step always has one row per slot, including idle slots, and reads
    tokens, lengths and cache from tensors that never move.

    Parameters
    ----------
    model : PreTrainedModel
        Set to use that attention function.
    kv : VirtualKV
    batch_invariant : bool
        Whether a row of a decode step is to have the same bits whatever rows are beside it.

    Attributes
    ----------
    executor : Executor
    parts : list of object
        What differs once the model does, see `refresh`.
    """

    def __init__(
        self, model: PreTrainedModel, kv: VirtualKV, *, batch_invariant: bool = False
    ) -> None:
        self._model: Any = model
        self._kv, self._batch_invariant = kv, batch_invariant
        self.device = kv.lengths.device
        slots = len(kv.lengths)
        pinned = self.device.type == "cuda"
        # Row 0: the newest token of each slot; row 1: 1 if the slot decodes; row 2: the slots that
        # do, in the order in which they are asked for. Filled on the host.
        self._host = torch.zeros(3, slots, dtype=torch.int64, pin_memory=pinned)
        self._inputs = self._host.to(self.device)
        self._lengths = torch.zeros(slots, dtype=torch.int32, device=self.device)
        self._positions = torch.zeros(slots, 1, dtype=torch.int64, device=self.device)
        self._step = DecodeStep(kv.keys, kv.values, self._lengths)
        # A four-dimensional mask is passed on unchanged. Without a mask, GPT-2 looks for padding in
        # every input, which waits for the device, and OPT creates a mask of its own.
        self._no_mask = torch.zeros(1, 1, 1, 1, dtype=torch.bool, device=self.device)
        self.parts = _parts(model)
        self._configs = model.config, *configs_beside(model)
        self._compiled = is_compiled(model)
        self._changes = changes_of(model)
        self.executor = self._make_executor()
        self._refreshed = False

    def refresh(self) -> None:
        """Have the executor follow a change of the model since the last call."""
        if (parts := _parts(self._model)) != self.parts:
            self.executor = self._make_executor()
            self.parts = parts
        self._configs = self._model.config, *configs_beside(self._model)
        self._compiled = is_compiled(self._model)
        self._refreshed = False

    def _make_executor(self) -> Executor:
        invariant = self._batch_invariant
        return executor_for(self._model, self._kv, self._run, batch_invariant=invariant)

    def require_fitting_cache(self) -> None:
        """Refuse a model that has been moved since the cache was made.

        Raises
        ------
        MisfitError
        """
        made = self._kv.keys[0]
        layer = adapter_for(self._model).decoder_layers(self._model)[0]
        found = next(layer.parameters())
        if (self._model.dtype, found.device) != (made.dtype, made.device):
            raise MisfitError(
                f"the model is {self._model.dtype} on {found.device} now, and the KV cache was "
                f"made for {made.dtype} on {made.device}: enter the engine again"
            )

    def close(self) -> None:
        """Drop the cache's tensors, which an error that is kept would hold on to."""
        del self._step, self.executor

    def decode(self, newest: Mapping[int, int]) -> Tensor:
        """Append the newest tokens of some slots, and return the logits of the next ones.

        Parameters
        ----------
        newest : mapping of int to int
            Token by slot. The cache's lengths must include it already.

        Returns
        -------
        Tensor
            Of shape [len(newest), vocabulary], in the order of `newest`.
        """
        if self.executor.of_plan is not None:
            self._require_in_charge()
            positions = [self._kv.length(slot) - 1 for slot in newest]
            return self.executor.step(list(newest.values()), list(newest), positions)
        inputs = self._host.numpy()
        inputs[:] = 0
        for slot, token in newest.items():
            inputs[:2, slot] = token, 1
        inputs[2, : len(newest)] = list(newest)
        if self._inputs is not self._host:
            self._inputs.copy_(self._host, non_blocking=True)
        tokens, decoding, asked = self._inputs
        torch.mul(self._kv.lengths, decoding, out=self._lengths)
        torch.sub(self._lengths, 1, out=self._positions[:, 0]).clamp_(min=0)
        logits = self._run(tokens[:, None], self._positions, self._step, 1)
        return logits[:, 0].index_select(0, asked[: len(newest)])

    def prefill(self, spans: Sequence[Span]) -> Tensor:
        """Process tokens of prompts in one pass, and return the logits after each span.

        Returns
        -------
        Tensor
            Of shape [len(spans), vocabulary].

        Raises
        ------
        TrimtabError
            If they are not finite.
        """
        logits = self._prefill(spans)
        require_finite(self._model, logits)
        return logits

    def _prefill(self, spans: Sequence[Span]) -> Tensor:
        if len(spans) == 1:
            return self._extend(spans[0], prompt=True, keep=1)
        step = PackedStep([self._step_of(span, prompt=True) for span in spans], prompt=True)
        tokens = torch.tensor([[token for span in spans for token in span.ids]], device=self.device)
        positions = [torch.arange(span.start, span.start + len(span.ids)) for span in spans]
        ends = torch.tensor(list(accumulate(len(span.ids) for span in spans)), device=self.device)
        return self._run(tokens, torch.cat(positions)[None].to(self.device), step, ends - 1)[0]

    @property
    def together(self) -> bool:
        """Whether a pass takes given tokens of several slots, and `choose` is there."""
        return self.executor.of_plan is not None

    def verify(self, spans: Sequence[Span]) -> Tensor:
        """Process tokens of given texts in one pass, and return the logits after each token.

        Parameters
        ----------
        spans : sequence of Span
            One, or, if `together`, several, of up to `MOST_ROWS` tokens in all.

        Returns
        -------
        Tensor
            Of shape [tokens in all, vocabulary].
        """
        if self.together and sum(len(span.ids) for span in spans) <= MOST_ROWS:
            self._require_in_charge()
            return self.executor.step(*_rows(spans))
        (span,) = spans
        return self._extend(span, prompt=False, keep=len(span.ids))

    def choose(self, spans: Sequence[Span]) -> list[int]:
        """Do what `verify` does, and return the likeliest token after each."""
        self._require_in_charge()
        assert self.executor.of_plan is not None
        if not self._refreshed:
            self.executor.of_plan.refresh_head()
            self._refreshed = True
        return self.executor.choose(*_rows(spans))

    def _step_of(self, span: Span, *, prompt: bool) -> ExtendStep:
        end = span.start + len(span.ids)
        return ExtendStep(self._kv.keys, self._kv.values, span.slot, span.start, end, prompt)

    def _extend(self, span: Span, *, prompt: bool, keep: int) -> Tensor:
        tokens = torch.tensor([span.ids], device=self.device)
        end = span.start + len(span.ids)
        positions = torch.arange(span.start, end, device=self.device)[None]
        return self._run(tokens, positions, self._step_of(span, prompt=prompt), keep)[0]

    def require_same_methods(self) -> None:
        """Refuse a model that methods have changed since the engine was entered.

        Raises
        ------
        TrimtabError
        """
        if changes_of(self._model) != self._changes:
            raise TrimtabError(
                "methods were applied to the model, or undone, after the engine was entered: "
                "enter an engine within the `with` of the methods, and leave it there"
            )

    def _require_in_charge(self) -> None:
        self.require_same_methods()
        for config in self._configs:
            if (found := config._attn_implementation) == NAME:
                continue
            raise TrimtabError(
                f"the model's attention is {found!r}, no longer the engine's {NAME!r}: it was set "
                "after the engine was entered, by decode_kernel or model.set_attn_implementation; "
                "leave the `with` of the former, or enter the engine again"
            )

    def _run(self, tokens: Tensor, positions: Tensor, step: Step, keep: int | Tensor) -> Tensor:
        self._require_in_charge()
        # Compiled code would keep the cache's tensors.
        stance = uncompiled() if self._compiled else nullcontext()
        # The cache has the model's dtype.
        with stance, torch.autocast(self.device.type, enabled=False), without_cudnn_attention():
            logits: Tensor = self._model(
                input_ids=tokens,
                position_ids=positions,
                attention_mask=self._no_mask,
                use_cache=False,
                logits_to_keep=keep,
                step=step,
            ).logits
        return logits


def _rows(spans: Sequence[Span]) -> tuple[list[int], list[int], list[int]]:
    """Return the token, the slot and the position of every token."""
    tokens = [token for span in spans for token in span.ids]
    slots = [span.slot for span in spans for _ in span.ids]
    return tokens, slots, [span.start + place for span in spans for place in range(len(span.ids))]


def _parts(model: PreTrainedModel) -> list[object]:
    """Return what differs once a module, a tensor, a hook or a setting of the model does."""
    # The key of a hook is its own, as long as the process lives.
    found: list[object] = [*_global_forward_hooks, *_global_forward_pre_hooks]
    found.append(_settings(model.config))
    for module in model.modules():
        hooks = *module._forward_hooks, *module._forward_pre_hooks
        found.append((id(module), type(module), type(module).forward, hooks, _settings(module)))
    for tensor in (*model.parameters(), *model.buffers()):
        found.append((tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype))
    # A plan has numbers that follow from vectors like frequencies; it reads all weights in place.
    found += [
        one.tolist() for one in model.buffers() if one.dim() < 2 and one.device.type != "meta"
    ]
    return found


def _settings(owner: object) -> list[tuple[str, object]]:
    found: list[tuple[str, object]] = []
    for name, value in vars(owner).items():
        if type(value) in SIMPLE or name == "forward":
            found.append((name, value))
        elif not name.startswith("_") and isinstance(value, (*COLLECTIONS, Number)):
            found.append((name, repr(value)))
    return found
