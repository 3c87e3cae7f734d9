"""Which activations are kept: by count, by magnitude, and at which positions of the text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, cat, nn

from trimtab.larosa.plan import SitePlan
from trimtab.larosa.settings import Prefill, Selection
from trimtab_kernels.sparse_linear import keep_above, keep_topk


@dataclass
class Positions:
    """Which positions of the current forward pass stay dense.

    Parameters
    ----------
    dense_prefix : int
        Leading positions of every text that drop nothing.
    prefill : Prefill
        `dense` leaves alone what reads a prompt: in the engine its chunks, elsewhere the first
        forward pass of a text, where it has several tokens.

    Attributes
    ----------
    length, dense : int
        Positions of the current pass, and how many of the first of them stay dense.
    rows : Tensor or None
        Where every row is at a position of its own, whether it stays dense: bool of shape
        [rows, 1].
    """

    dense_prefix: int
    prefill: Prefill
    length: int = 1
    dense: int = 0
    rows: Tensor | None = None

    @property
    def everywhere(self) -> bool:
        """Whether every token is sparse, so that nothing need be known of a pass."""
        return not self.dense_prefix and self.prefill is Prefill.sparse

    def observe(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note where in its text the model is: a forward pre-hook, with keywords, of the model.

        A pass of the engine says so in its `step`, and every other in its cache.
        """
        tokens = kwargs.get("input_ids", args[0] if args else None)
        tokens = kwargs["inputs_embeds"] if tokens is None else tokens
        self.length, self.dense, self.rows = tokens.shape[1], 0, None
        step = kwargs.get("step")
        if step is None:
            cache = kwargs.get("past_key_values")
            start = 0 if cache is None else int(cache.get_seq_length())
            prompt = start == 0 and self.length > 1
        else:
            start, prompt = step.start, step.prompt
        if prompt and self.prefill is Prefill.dense:
            self.dense = self.length
        elif start is not None:
            self.dense = min(max(self.dense_prefix - start, 0), self.length)
        elif self.dense_prefix:
            # Compared where the positions are: to look at a number is to wait for the device.
            self.rows = kwargs["position_ids"] < self.dense_prefix


@dataclass
class Recorder:
    """Whether the selections of a model count what they keep."""

    on: bool = False


@dataclass
class Selector:
    """The selection at one site of one layer.

    Parameters
    ----------
    site : str
    plan : SitePlan
    selection : Selection
    cap : float
        Of `capped`: the most entries a token may keep, over what the plan keeps on average.
    positions : Positions
    recorder : Recorder
        Says whether to count.

    Attributes
    ----------
    kept, seen : int
        Entries that were not zero, and all entries, while recording.
    """

    site: str
    plan: SitePlan
    selection: Selection
    cap: float
    positions: Positions
    recorder: Recorder
    kept: int = 0
    seen: int = 0

    def __call__(self, z: Tensor) -> Tensor:
        """Zero what is dropped of activations [..., d]."""
        if self.positions.rows is not None:
            # Some architectures flatten rows and positions before their MLP.
            dense = self.positions.rows.reshape(-1, *[1] * (z.dim() - 1))
            selected = z.where(dense, self._keep(z))
        elif not self.positions.dense:
            selected = self._keep(z)
        elif self.positions.dense == self.positions.length:
            selected = z
        else:
            # Some architectures flatten batch and positions before their MLP.
            rows = z.reshape(-1, self.positions.length, z.shape[-1])
            head, tail = rows[:, : self.positions.dense], rows[:, self.positions.dense :]
            selected = cat([head, self._keep(tail)], dim=1).reshape(z.shape)
        if self.recorder.on:
            self.kept += int(selected.count_nonzero())
            self.seen += selected.numel()
        return selected

    def _keep(self, z: Tensor) -> Tensor:
        width = z.shape[-1]
        kept = width - round(self.plan.sparsity * width)
        if self.selection is Selection.topk:
            return keep_topk(z, kept)
        cap = min(width, round(self.cap * kept)) if self.selection is Selection.capped else None
        return keep_above(z, self.plan.threshold, cap)
