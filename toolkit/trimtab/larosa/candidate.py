"""A basis that a site may run in, as the process that found it hands it to the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.larosa.bases import through
from trimtab.larosa.statistics import MagnitudeHistogram

MATRIX, ENTRY_COSTS, SAVED = "matrix", "entry_costs", "saved."


@dataclass
class Candidate:
    """A basis of one site.

    Attributes
    ----------
    basis : str
        As in `SitePlan`.
    matrix : Tensor
        M of `trimtab.larosa.bases`, float64 of shape [d] or [d, d]. After a norm it multiplies
        what the norm makes before its weight.
    saved : dict of str to Tensor
        What applying the basis needs, by name; see `Calibrator.planned`.
    histogram : MagnitudeHistogram
        Of the activations in this basis.
    """

    basis: str
    matrix: Tensor
    saved: dict[str, Tensor]
    histogram: MagnitudeHistogram

    def update(self, x: Tensor) -> None:
        """Count activations of shape [..., d]."""
        matrix = self.matrix.to(x.device, torch.float32)
        self.histogram.update(through(x.float(), matrix))

    def to_tensors(self) -> dict[str, Tensor]:
        """Return all of it but what the histogram counted."""
        saved = {f"{SAVED}{name}": tensor for name, tensor in self.saved.items()}
        return {MATRIX: self.matrix, ENTRY_COSTS: self.histogram.costs, **saved}

    @classmethod
    def from_tensors(cls, basis: str, tensors: Mapping[str, Tensor]) -> Candidate:
        """Return what `to_tensors` was called on, with nothing counted."""
        saved = {
            name.removeprefix(SAVED): tensor
            for name, tensor in tensors.items()
            if name.startswith(SAVED)
        }
        histogram = MagnitudeHistogram(tensors[ENTRY_COSTS])
        return cls(basis, tensors[MATRIX], saved, histogram)


def packed(sites: Mapping[str, list[Candidate]]) -> dict[str, Tensor]:
    """Return the candidates of every site as tensors called ``<site>.<basis>.<what>``."""
    return {
        f"{site}.{part.basis}.{what}": tensor
        for site, parts in sites.items()
        for part in parts
        for what, tensor in part.to_tensors().items()
    }


def unpacked(tensors: Mapping[str, Tensor]) -> dict[str, list[Candidate]]:
    """Return what `packed` was called on."""
    grouped: dict[str, dict[str, dict[str, Tensor]]] = {}
    for name, tensor in tensors.items():
        site, basis, what = name.split(".", 2)
        grouped.setdefault(site, {}).setdefault(basis, {})[what] = tensor
    return {
        site: [Candidate.from_tensors(basis, parts) for basis, parts in bases.items()]
        for site, bases in grouped.items()
    }
