"""Which activations are kept: by count, by magnitude, and at which positions of the text."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from torch import Tensor, cat, nn

from kernels.sparse_linear import keep_above, keep_topk
from toolkit.larosa.plan import SitePlan
from toolkit.method import Applied


class Selection(StrEnum):
    """How the activations to keep are chosen."""

    threshold = "threshold"
    topk = "topk"
    capped = "capped"


class Prefill(StrEnum):
    """Whether the prompt's tokens are sparse too."""

    sparse = "sparse"
    dense = "dense"


@dataclass
class Positions:
    """Which positions of the current forward pass stay dense.

    Parameters
    ----------
    dense_prefix : int
        Leading positions of every text that drop nothing.
    prefill : Prefill
        `dense` leaves the first forward pass of a text alone, where it has several tokens.

    Attributes
    ----------
    length, dense : int
        Positions of the current pass, and how many of the first of them stay dense.
    """

    dense_prefix: int
    prefill: Prefill
    length: int = 1
    dense: int = 0

    @property
    def everywhere(self) -> bool:
        """Whether every token is sparse, so that nothing need be known of a pass."""
        return not self.dense_prefix and self.prefill is Prefill.sparse

    def observe(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note where in its text the model is: a forward pre-hook, with keywords, of the model."""
        tokens = kwargs.get("input_ids", args[0] if args else None)
        tokens = kwargs["inputs_embeds"] if tokens is None else tokens
        cache = kwargs.get("past_key_values")
        start = 0 if cache is None else int(cache.get_seq_length())
        self.length = tokens.shape[1]
        whole = self.prefill is Prefill.dense and start == 0 and self.length > 1
        self.dense = self.length if whole else min(max(self.dense_prefix - start, 0), self.length)


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
    applied : Applied
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
    applied: Applied
    kept: int = 0
    seen: int = 0

    def __call__(self, z: Tensor) -> Tensor:
        """Zero what is dropped of activations [..., d]."""
        if self.positions.everywhere or not self.positions.dense:
            selected = self._keep(z)
        elif self.positions.dense == self.positions.length:
            selected = z
        else:
            # Some architectures flatten batch and positions before their MLP.
            rows = z.reshape(-1, self.positions.length, z.shape[-1])
            head, tail = rows[:, : self.positions.dense], rows[:, self.positions.dense :]
            selected = cat([head, self._keep(tail)], dim=1).reshape(z.shape)
        if self.applied.recording:
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
