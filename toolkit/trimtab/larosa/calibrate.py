"""Calibration of LaRoSA: moments, gradients, costs, then a plan for every site of every layer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from trimtab.larosa.allocation import Choice, Option, alpha_grid, steepest, uniform
from trimtab.larosa.checkpoint import Checkpoint
from trimtab.larosa.costs import SHARES, Costs
from trimtab.larosa.passes import Passes
from trimtab.larosa.plan import Plan
from trimtab.larosa.residual import basis_changes
from trimtab.larosa.settings import (
    PLAIN,
    TRANSFORM,
    Allocation,
    LaRoSASettings,
    Precision,
    RotationScope,
)
from trimtab.models.adapter import input_major
from trimtab.models.misfits import require_gradients


class Calibrator:
    """The calibration of one model on one text.

    Parameters
    ----------
    model : PreTrainedModel
    windows : Tensor
        Token ids, int64 of shape [windows, length].
    checkpoint : Path
        Folder that a killed calibration resumes from.
    config : LaRoSASettings
        May leave settings to choose: what is measured is the same whatever they will be.

    Attributes
    ----------
    probes : int
        How many of the windows gradients and costs are measured on.
    """

    def __init__(
        self, model: PreTrainedModel, windows: Tensor, checkpoint: Path, config: LaRoSASettings
    ) -> None:
        self.probes = min(len(windows), config.probe_tokens // windows.shape[1])
        self.passes = Passes(
            model, windows, self.probes, Checkpoint(checkpoint), config.dense_prefix
        )
        self.costs = Costs(self.passes, config)
        self.rotation_group = self.costs.rotation_group
        self.config = config
        self.count = len(self.passes.layers)
        self.after_norm = [site.name for site in self.passes.adapter.sites if site.norm]
        width, itemsize = model.config.hidden_size, model.dtype.itemsize
        self.basis_change_bytes = width**2 * itemsize
        coarse = config.precision is Precision.int8
        self.transform_bytes = width**2 + 4 * width if coarse else width**2 * itemsize

    def measure(self) -> None:
        """Go over the layers, as far as the checkpoint folder does not hold what that finds."""
        if self.config.uses_gradients:
            require_gradients(self.passes.model)
        self.passes.checkpoint.discard_damaged(self.count)
        self.passes.moments()
        if self.config.uses_gradients:
            self.passes.fisher()
        self.costs.measure()

    def planned(self, config: LaRoSASettings) -> tuple[Plan, dict[str, Tensor], dict[str, Any]]:
        """Return the plan, its tensors, and statistics for the artifact.

        The thresholds are those of the dense model. Tensors are float32 unless another dtype is
        named, and called ``layers.<index>.<site>.<what>``, where <what> is

        - ``norm_weight`` [d]: the weight of the new norm at h1 or h3;
        - ``transform``: [d, d] at h1 or h3, or int8 with ``transform_scale`` [d], see
          `stored_transform`; [kv_heads, head_dim, head_dim] at h2;
        - ``up_scale`` [d]: at h4, what the gate's other factor is multiplied by.

        ``residual.<first layer>`` [d, d] is the rotation of the layers from that one on.

        Parameters
        ----------
        config : LaRoSASettings
            The calibration's, with what these leave to choose.
        """
        plan, cost = self._plan(config)
        windows = self.passes.windows
        statistics = {
            "tokens": windows.numel(),
            "windows": len(windows),
            "probe_tokens": self.probes * windows.shape[1],
            "cost": cost,
        }
        return plan, dict(self._tensors(plan)), statistics

    def _options(self, index: int, config: LaRoSASettings) -> Iterator[list[Option]]:
        """Yield the options of every site of a layer, the ones without a transform first."""
        passes = self.passes
        layer, found = passes.layers[index], self.passes.checkpoint.load("costs", index)
        for site in passes.adapter.sites:
            bases = [PLAIN]
            if site.norm is not None:
                scope = config.residual
                own = scope is RotationScope.site and site.name != self.after_norm[0]
                bases = [TRANSFORM] if own else config.bases()
            counted = self.transform_bytes if config.counts_transforms else 0
            weight_bytes = sum(
                input_major(reader).nbytes for reader in passes.adapter.readers(layer, site)
            )
            yield [
                Option(
                    site.name,
                    basis,
                    SHARES,
                    found[f"{site.name}.{basis}.thresholds"],
                    found[f"{site.name}.{basis}.costs"],
                    weight_bytes,
                    counted if basis == TRANSFORM else 0,
                )
                for basis in bases
            ]

    def _plan(self, config: LaRoSASettings) -> tuple[Plan, float]:
        """Return the plan, and its summed cost."""
        layers = range(self.count)
        sites = [options for index in layers for options in self._options(index, config)]
        target = config.sparsity * sum(options[0].weight_bytes for options in sites)
        if config.counts_transforms:
            target += basis_changes(self.rotation_group, self.count) * self.basis_change_bytes
        choices = self._allocate(config.allocation, sites, target)
        return Plan.of(choices, self.rotation_group), sum(choice.cost for choice in choices)

    def _allocate(
        self, allocation: Allocation, sites: list[list[Option]], target: float
    ) -> list[Choice]:
        if allocation is Allocation.steepest:
            return steepest(sites, target)
        only = [options[0] for options in sites]
        if allocation is Allocation.alpha:
            return alpha_grid(only, target, self.after_norm)
        return uniform(only, target)

    def _tensors(self, plan: Plan) -> Iterator[tuple[str, Tensor]]:
        """Yield the plan's tensors, in memory of their own: the checkpoint will be removed."""
        for index in range(self.count):
            found = self.passes.checkpoint.load("costs", index)
            for name, row in plan.sites.items():
                prefix = f"{name}.{row[index].basis}.saved."
                for key, tensor in found.items():
                    if key.startswith(prefix):
                        yield f"layers.{index}.{name}.{key.removeprefix(prefix)}", tensor.clone()
            if plan.rotation_group and index % plan.rotation_group == 0:
                rotation = self.costs.rotation(index)
                assert rotation is not None
                yield f"residual.{index}", rotation.clone()
