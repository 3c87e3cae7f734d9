"""Which activations are kept: by count, by magnitude, and at which positions of the text."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from trimtab.larosa.plan import Plan, SitePlan
from trimtab.larosa.settings import LaRoSASettings, Prefill, Selection
from trimtab.models.adapter import adapter_for
from trimtab.models.decode_parts import in_plan
from trimtab_kernels import decode_step
from trimtab_kernels.sparse_linear import keep_above, keep_topk


@dataclass
class Positions(threading.local):
    """Which positions of the forward pass that this thread is in stay dense.

    Parameters
    ----------
    dense_prefix : int
        Leading positions of every text that drop nothing.
    prefill : Prefill
        `dense` leaves the tokens of a prompt alone: in the engine those of its chunks, in
        ``generate_batch`` those that begin a text or come several at a time, elsewhere those of the
        first forward pass of a text, which for a padded row is that in which its padding ends.

    Attributes
    ----------
    length, dense : int
        Positions of the current pass, and how many of them, from the first on, stay dense.
    rows : Tensor or None
        Where rows are at positions of their own, whether each stays dense: bool of shape
        [rows, length].
    """

    dense_prefix: int
    prefill: Prefill
    length: int = 1
    dense: int = 0
    rows: Tensor | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Positions, (self.dense_prefix, self.prefill)

    @property
    def everywhere(self) -> bool:
        """Whether all tokens are sparse, so that nothing need be known about a pass."""
        return not self.dense_prefix and self.prefill is Prefill.sparse

    @in_plan
    @torch.compiler.disable
    def observe(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note where in its text a pass is: a forward pre-hook with keywords.

        A pass of the engine says so in its `step`, any other pass in its cache; what its mask or
        its positions leave before a row's text is not part of the text. No compiler traces it: it
        would keep what it saw in the first pass.
        """
        if len(args) > 1:
            kwargs = {
                **dict(zip(signature(module.forward).parameters, args, strict=False)),
                **kwargs,
            }
        tokens = kwargs.get("input_ids", args[0] if args else None)
        tokens = kwargs["inputs_embeds"] if tokens is None else tokens
        self.length, self.dense, self.rows = tokens.shape[1], 0, None
        step = kwargs.get("step")
        if step is None:
            cache = kwargs.get("past_key_values")
            start = 0 if cache is None else int(cache.get_seq_length())
            prompt = start == 0
        else:
            start, prompt = step.start, step.prompt
        ends = None if step is not None else kwargs.get("cu_seq_lens_q")
        if ends is not None and self.prefill is Prefill.dense:
            self.rows = self._of_prompts(kwargs["position_ids"], ends)
        elif prompt and self.prefill is Prefill.dense:
            self.dense = self.length
        elif not self.dense_prefix and (step is not None or self.prefill is not Prefill.dense):
            return
        elif step is None and (rows := self._rows(start, tokens.device, kwargs)) is not None:
            # Compared on their own device: to look at a number there is to wait for the device.
            self.rows = rows.expand(tokens.shape[0], -1) if rows.is_cuda or rows.any() else None
        elif start is not None:
            self.dense = min(max(self.dense_prefix - start, 0), self.length)
        else:
            self.rows = kwargs["position_ids"] < self.dense_prefix

    def _of_prompts(self, positions: Tensor, ends: Tensor) -> Tensor:
        """Return which tokens of several texts in one row, given where each ends, stay dense."""
        places = torch.arange(self.length, device=ends.device)
        texts = torch.searchsorted(ends[1:-1].contiguous(), places, right=True)
        first = positions[0, ends[:-1].clamp(max=self.length - 1)] == 0
        prompt = first | (ends.diff() > 1)
        return prompt[texts] | (positions < self.dense_prefix)

    def _rows(self, start: int, device: torch.device, given: dict[str, Any]) -> Tensor | None:
        """Return which positions of each row stay dense; None if nothing tells rows apart."""
        mask, positions = given.get("attention_mask"), given.get("position_ids")
        found = None if positions is None else positions < self.dense_prefix
        first = None if positions is None else (positions == 0).any(-1, keepdim=True)
        if isinstance(mask, Tensor) and mask.dim() == 2:
            places = torch.arange(start, start + self.length, device=device)
            begin = mask.ne(0).int().argmax(-1, keepdim=True)
            begun, first = places - begin < self.dense_prefix, begin >= start
            found = begun if found is None else found | begun
        if found is None or first is None or self.prefill is not Prefill.dense:
            return found
        return found | first


@dataclass
class Recorder:
    """Whether the selectors of a model count what they keep."""

    on: bool = False


def _nothing_yet() -> Tensor:
    with torch.inference_mode(False):
        return torch.zeros(2, dtype=torch.int64)


@dataclass
class Selector:
    """What drops the activations of one site of one layer.

    Parameters
    ----------
    site : str
    plan : SitePlan
    selection : Selection
    cap : float
        For `Selection.capped`: the most entries a token keeps, over the plan's average.
    positions : Positions
    recorder : Recorder

    Attributes
    ----------
    counts : Tensor
        int64 of shape [2]: entries that were not zero, and all entries. The selector adds to it
        while recording, and an executor of decode plans always, on whose device it is.
    recorded : Tensor
        The same, while recording alone, on the host.
    """

    site: str
    plan: SitePlan
    selection: Selection
    cap: float
    positions: Positions
    recorder: Recorder
    counts: Tensor = field(default_factory=_nothing_yet)
    recorded: Tensor = field(default_factory=_nothing_yet)

    @property
    def kept(self) -> float:
        """Share of the entries that were not zero, while recording."""
        return float(self.recorded[0].float() / self.recorded[1])

    def __call__(self, z: Tensor) -> Tensor:
        """Zero what is dropped of activations [..., d]."""
        return self._untraced(z) if torch.compiler.is_compiling() else self._selected(z)

    @torch.compiler.disable
    def _untraced(self, z: Tensor) -> Tensor:
        """Do as `_selected` where a compiler traces, which would keep a pass's positions."""
        return self._selected(z)

    def _selected(self, z: Tensor) -> Tensor:
        if self.positions.rows is not None:
            # Some architectures flatten rows and positions before their MLP.
            dense = self.positions.rows.reshape(*z.shape[:-1], 1)
            selected = z.where(dense, self._keep(z))
        elif not self.positions.dense:
            selected = self._keep(z)
        elif self.positions.dense == self.positions.length:
            selected = z
        else:
            # Some architectures flatten batch and positions before their MLP.
            rows = z.reshape(-1, self.positions.length, z.shape[-1])
            kept = self._keep(rows)
            kept[:, : self.positions.dense] = rows[:, : self.positions.dense]
            selected = kept.reshape(z.shape)
        if self.recorder.on:
            counted = torch.tensor([int(selected.count_nonzero()), selected.numel()])
            self.counts += counted.to(self.counts.device)
        return selected

    def in_decode_step(self, width: int, device: torch.device) -> decode_step.Selection:
        """Return what a decode step keeps of `width` activations: no prompt is among its tokens."""
        if self.counts.device != device:
            with torch.inference_mode(False):
                self.counts = self.counts.to(device)
        return decode_step.Selection(*self._rule(width), self.counts)

    def description(self, width: int) -> tuple[Any, ...]:
        """Return, as JSON values, all that decides which of `width` activations are kept."""
        return *self._rule(width), self.positions.prefill.value

    def _rule(self, width: int) -> tuple[int, float, int]:
        """Return how many activations stay at most, from which magnitude on, after which prefix."""
        prefix = self.positions.dense_prefix
        if self.selection is Selection.topk:
            return self._count(width), 0.0, prefix
        return self._cap(width), self.plan.threshold, prefix

    def _keep(self, z: Tensor) -> Tensor:
        width = z.shape[-1]
        if self.selection is Selection.topk:
            return keep_topk(z, self._count(width))
        cap = self._cap(width)
        return keep_above(z, self.plan.threshold, None if cap == width else cap)

    def _count(self, width: int) -> int:
        return width - round(self.plan.sparsity * width)

    def _cap(self, width: int) -> int:
        capped = self.selection is Selection.capped
        return min(width, round(self.cap * self._count(width))) if capped else width


class Selectors:
    """The selectors of a whole model, which know together where in its text the model is.

    Parameters
    ----------
    plan : Plan
    settings : LaRoSASettings

    Attributes
    ----------
    made : list of Selector
        In the order in which they were asked for.
    recorder : Recorder
        What tells them whether to count.
    """

    def __init__(self, plan: Plan, settings: LaRoSASettings) -> None:
        self._plan, self._settings = plan, settings
        self._positions = Positions(settings.dense_prefix, settings.prefill)
        self.recorder = Recorder()
        self.made: list[Selector] = []

    def selector(self, site: str, layer: int) -> Selector:
        """Return a new selector for a site of a layer."""
        part = self._plan.sites[site][layer]
        selection, cap = self._settings.selection, self._settings.cap
        self.made.append(Selector(site, part, selection, cap, self._positions, self.recorder))
        return self.made[-1]

    def follow(self, model: PreTrainedModel) -> RemovableHandle | None:
        """Have the selectors know of every forward pass of the model, if they need to."""
        if self._positions.everywhere:
            return None
        decoder = adapter_for(model).decoder(model)
        return decoder.register_forward_pre_hook(self._positions.observe, with_kwargs=True)

    @contextmanager
    def following(self, model: PreTrainedModel) -> Iterator[None]:
        """Have the selectors know of every forward pass within the block."""
        handle = self.follow(model)
        try:
            yield
        finally:
            if handle is not None:
                handle.remove()
