"""What a sparse model read, from what was counted while it ran."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from typing_extensions import TypedDict  # pydantic reads no other before Python 3.12

from trimtab.larosa.apply import SparseModel
from trimtab.larosa.auto import told
from trimtab.larosa.selection import Recorder, Selector
from trimtab.resampling import Estimate

NOTHING_TO_CHOOSE = "neither larosa.selection nor larosa.allocation is auto"


class SparseSite(TypedDict):
    """What was dropped at one site of one layer."""

    layer: int
    site: str
    basis: str
    achieved: float


class Candidate(TypedDict):
    """Settings that calibration tried where it had to choose, see `comparison.best`."""

    selection: str
    allocation: str
    transforms: str
    excess: Estimate | None
    bytes_fraction: float | None
    reason: str | None
    chosen: bool


class Sparsity(TypedDict):
    """Result.json's `sparsity`."""

    requested: float
    achieved: float
    bytes_fraction: float
    bytes_read_fraction: float
    sites: dict[str, float]
    layers: list[SparseSite]
    dense_prefix: int
    prefill: str
    prompt_kernel: str
    candidates: list[Candidate] | None


@dataclass
class AppliedLaRoSA:
    """LaRoSA at work: it skips bytes, runs a kernel and measures what was kept.

    Parameters
    ----------
    sparse : SparseModel
    selectors : sequence of Selector
        The selectors at work in it, layer by layer.
    recorder : Recorder
        What tells the selectors whether to count.
    requested : float
        The sparsity asked for.
    candidates : sequence of dict
        What calibration chose from, see `comparison.best`; empty where nothing was left to it.
    """

    sparse: SparseModel
    selectors: Sequence[Selector]
    recorder: Recorder
    requested: float
    candidates: Sequence[Candidate] = ()

    @property
    def kernel(self) -> str:
        """What multiplies one token with the weights, and settings that calibration chose."""
        chosen = [f" ({told(row)})" for row in self.candidates if row["chosen"]]
        return self.sparse.kernel + "".join(chosen)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Count what is kept within the block."""
        before = [part.counts.clone().cpu() for part in self.selectors]
        self.recorder.on = True
        try:
            yield
        finally:
            self.recorder.on = False
            for part, counts in zip(self.selectors, before, strict=True):
                part.recorded += part.counts.cpu() - counts

    def kept_bytes(self) -> float:
        """Return the bytes of weights that multiply what a token kept, on average."""
        pairs = zip(self.sparse.weight_bytes, self.selectors, strict=True)
        return sum(size * part.kept for size, part in pairs)

    def extra_step_bytes(self) -> int:
        """Return the bytes a decode step reads beyond the parameters, less those it skips."""
        skipped = sum(self.sparse.weight_bytes) - self.kept_bytes() if self.sparse.skips else 0
        return self.sparse.basis_change_bytes - round(skipped)

    def measured(self) -> dict[str, Any]:
        """Return result.json's `sparsity`.

        ``bytes_fraction`` counts the weight rows of what was kept, every transform and every
        basis change; ``bytes_read_fraction`` what the kernel that ran for one token had to read.
        """
        dense, kept = sum(self.sparse.weight_bytes), self.kept_bytes()
        extra = self.sparse.transform_bytes + self.sparse.basis_change_bytes
        sites: dict[str, list[Selector]] = {}
        for part in self.selectors:
            sites.setdefault(part.site, []).append(part)
        section: Sparsity = {
            "requested": self.requested,
            "achieved": 1 - kept / dense,
            "bytes_fraction": (kept + extra) / dense,
            "bytes_read_fraction": ((kept if self.sparse.skips else dense) + extra) / dense,
            "sites": {name: _dropped(row) for name, row in sites.items()},
            "layers": [
                {
                    "layer": layer,
                    "site": name,
                    "basis": part.plan.basis,
                    "achieved": _dropped([part]),
                }
                for name, row in sites.items()
                for layer, part in enumerate(row)
            ],
            "dense_prefix": self.selectors[0].positions.dense_prefix,
            "prefill": self.selectors[0].positions.prefill.value,
            "prompt_kernel": self.sparse.prompt_kernel,
            "candidates": list(self.candidates) or None,
        }
        reasons = {} if self.candidates else {"candidates": NOTHING_TO_CHOOSE}
        return {"sparsity": {**section, "reasons": reasons}}


def _dropped(selectors: Sequence[Selector]) -> float:
    kept, seen = torch.stack([part.recorded for part in selectors]).sum(0).tolist()
    return 1 - kept / seen
