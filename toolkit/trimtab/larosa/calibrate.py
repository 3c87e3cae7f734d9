"""Calibration of LaRoSA: moments, gradients, costs, then a plan for every site of every layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from trimtab.files import save_tensors
from trimtab.larosa.allocation import Choice, Option, alpha_grid, greedy, uniform
from trimtab.larosa.candidates import candidates
from trimtab.larosa.plan import Plan
from trimtab.larosa.residual import adapters, residual_rotation, span_of
from trimtab.larosa.settings import (
    PLAIN,
    TRANSFORM,
    Allocation,
    LaRoSASettings,
    Precision,
    RotationScope,
)
from trimtab.larosa.sweeps import Sweeps
from trimtab.larosa.watch import seeing
from trimtab.models.adapter import input_major, module_device
from trimtab.models.layerwise import LayerwiseForward
from trimtab.progress import track

SHARES = torch.arange(39, dtype=torch.float64) / 40  # of the activations dropped: 0 to 0.95


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

    Attributes
    ----------
    probes : int
        How many of the windows gradients and costs are measured on.
    """

    def __init__(
        self, model: PreTrainedModel, windows: Tensor, checkpoint: Path, config: LaRoSASettings
    ) -> None:
        self.probes = min(len(windows), config.probe_tokens // windows.shape[1])
        self.sweeps = Sweeps(model, windows, self.probes, checkpoint)
        self.config = config
        self.count = len(self.sweeps.layers)
        self.behind_norm = [site.name for site in self.sweeps.adapter.sites if site.norm]
        width, itemsize = model.config.hidden_size, model.dtype.itemsize
        self.adapter_bytes = width**2 * itemsize
        coarse = config.precision is Precision.int8
        self.transform_bytes = width**2 + 4 * width if coarse else width**2 * itemsize
        self.span = span_of(config.residual, self.count, config.group)

    def run(self) -> tuple[Plan, dict[str, Tensor], dict[str, Any]]:
        """Return the plan, its tensors, and statistics for the artifact.

        Tensors are named ``layers.<index>.<site>.<what>``, where what is ``transform`` (float32
        [d, d], or [kv_heads, head_dim, head_dim] at h2; int8 with a ``scale``, see
        `stored_transform`) or ``gain`` (float32 [d]: what the norm, or at h4 the gate's other
        factor, is scaled by), and ``residual.<first layer>`` (float32 [d, d]). The thresholds
        are those of the dense model.
        """
        self.sweeps.moments()
        if self.config.uses_gradients:
            self.sweeps.sensitivities()
        self._measure_costs()
        plan, cost = self._plan()
        windows = self.sweeps.windows
        statistics = {
            "tokens": windows.numel(),
            "windows": len(windows),
            "probe_tokens": self.probes * windows.shape[1],
            "cost": cost,
        }
        return plan, dict(self._tensors(plan)), statistics

    def _rotation(self, index: int) -> Tensor | None:
        """Return the residual stream's rotation at a layer, found once and kept."""
        if not self.span:
            return None
        first = index // self.span * self.span
        path = self.sweeps.file("residual", first)
        if not path.exists():
            share = self.config.residual
            names = self.behind_norm[:1] if share is RotationScope.site else self.behind_norm
            layers = range(first, min(first + self.span, self.count))
            device = module_device(self.sweeps.layers[first])
            parts = (self.sweeps.load("moments", layer) for layer in layers)
            rotation = residual_rotation(part[name].to(device) for part in parts for name in names)
            save_tensors(path, {"rotation": rotation.float()})
        return load_file(path)["rotation"]

    def _measure_costs(self) -> None:
        """Count, layer by layer, what dropping costs in every basis: ``costs-<layer>``."""
        missing = [i for i in range(self.count) if not self.sweeps.file("costs", i).exists()]
        if not missing:
            return
        probes = self.sweeps.windows[: self.probes]
        stream = LayerwiseForward(self.sweeps.model, self.sweeps.adapter, probes)
        done = self.count - len(missing)
        for index in track(missing, "Costs of dropping", self.count, done):
            found = self._layer_costs(stream, index)
            save_tensors(self.sweeps.file("costs", index), found)

    def _layer_costs(self, stream: LayerwiseForward, index: int) -> dict[str, Tensor]:
        sweeps, layer = self.sweeps, self.sweeps.layers[index]
        sensitivities = sweeps.load("sensitivities", index) if self.config.uses_gradients else {}
        sites = candidates(
            sweeps.adapter, sweeps.heads, layer, sweeps.load("moments", index), sensitivities,
            self._rotation(index), self.config,
        )  # fmt: skip
        stream.hidden = sweeps.entering(index)
        with ExitStack() as hooks:
            for name, parts in sites.items():
                for part in parts:
                    hooks.enter_context(seeing(sweeps.adapter, layer, {name: part.update}))
            stream.outputs(index)
        found = {}
        for name, parts in sites.items():
            for part in parts:
                thresholds, costs = part.histogram.below(SHARES)
                found[f"{name}.{part.basis}.thresholds"] = thresholds
                found[f"{name}.{part.basis}.costs"] = costs
                for what, tensor in part.saved.items():
                    found[f"{name}.{part.basis}.saved.{what}"] = tensor.cpu()
        return found

    def _options(self, index: int) -> Iterator[list[Option]]:
        sweeps = self.sweeps
        layer, found = sweeps.layers[index], sweeps.load("costs", index)
        for site in sweeps.adapter.sites:
            bases = [PLAIN]
            if site.norm is not None:
                share = self.config.residual
                alone = share is RotationScope.site and site.name != self.behind_norm[0]
                bases = [TRANSFORM] if alone else self.config.bases()
            counted = self.transform_bytes if self.config.counts_transforms else 0
            weight_bytes = sum(
                input_major(reader).nbytes for reader in sweeps.adapter.readers(layer, site)
            )
            yield [
                Option(
                    index,
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

    def _plan(self) -> tuple[Plan, float]:
        """Return the plan, and its summed cost."""
        sites = [options for index in range(self.count) for options in self._options(index)]
        dense = sum(options[0].weight_bytes for options in sites)
        adapter_bytes = adapters(self.span, self.count) * self.adapter_bytes
        target = self.config.sparsity * dense + (
            adapter_bytes if self.config.counts_transforms else 0
        )
        choices = self._allocate(sites, target)
        own = sum(choice.option.basis == TRANSFORM for choice in choices) * self.transform_bytes
        plan = Plan.of(choices, self.span, dense, own + adapter_bytes)
        return plan, sum(choice.cost for choice in choices)

    def _allocate(self, sites: list[list[Option]], target: float) -> list[Choice]:
        if self.config.allocation is Allocation.steepest:
            return greedy(sites, target)
        only = [options[0] for options in sites]
        if self.config.allocation is Allocation.alpha:
            return alpha_grid(only, target, self.behind_norm)
        return uniform(only, target)

    def _tensors(self, plan: Plan) -> Iterator[tuple[str, Tensor]]:
        for index in range(self.count):
            found = self.sweeps.load("costs", index)
            for name, row in plan.sites.items():
                prefix = f"{name}.{row[index].basis}.saved."
                for key, tensor in found.items():
                    if key.startswith(prefix):
                        yield f"layers.{index}.{name}.{key.removeprefix(prefix)}", tensor
            if plan.span and index % plan.span == 0:
                rotation = self._rotation(index)
                assert rotation is not None
                yield f"residual.{index}", rotation
