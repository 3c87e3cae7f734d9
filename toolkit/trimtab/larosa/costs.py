"""What dropping activations costs: the pass over the layers that counts it in every basis."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack

import torch
from torch import Tensor

from trimtab import shards
from trimtab.larosa.candidate import Candidate, packed, unpacked
from trimtab.larosa.candidates import candidates
from trimtab.larosa.observation import after_prefix, observing
from trimtab.larosa.passes import Passes
from trimtab.larosa.residual import group_start, residual_rotation, rotation_group_size
from trimtab.larosa.settings import LaRoSASettings, RotationScope
from trimtab.models.adapter import module_device
from trimtab.models.layerwise import LayerwiseForward
from trimtab.progress import track

SHARES = torch.arange(39, dtype=torch.float64) / 40  # of the activations dropped: 0 to 0.95


class Costs:
    """The pass that counts costs, over the probe windows.

    Parameters
    ----------
    passes : Passes
        Done already, those of them that `config` asks for.
    config : LaRoSASettings

    Attributes
    ----------
    rotation_group : int
        How many layers share a rotation of the residual stream; 0 for no rotation.
    """

    def __init__(self, passes: Passes, config: LaRoSASettings) -> None:
        self.passes = passes
        self.config = config
        self.checkpoint = passes.checkpoint
        self.count = len(passes.layers)
        self.rotation_group = rotation_group_size(config.residual, self.count, config.group)

    def rotation(self, index: int) -> Tensor | None:
        """Return the residual stream's rotation at a layer."""
        if not self.rotation_group:
            return None
        first = group_start(self.rotation_group, index)
        return self.checkpoint.load("residual", first)["rotation"]

    def measure(self) -> None:
        """Count, layer by layer, what dropping costs in every basis: ``costs/<layer>``."""
        if self.rotation_group and shards.writes():
            self._find_rotations()
        shards.wait()
        layers = range(self.count)
        missing = (index for index in layers if not self.checkpoint.has("costs", index))
        start = int(shards.agreed(next(missing, self.count)))
        if start == self.count:
            return
        probes = shards.mine(self.passes.windows[: self.passes.probes])
        forward = LayerwiseForward(self.passes.model, self.passes.adapter, probes)
        sites = self._candidates(start)
        for index in track(layers[start:], "Costs of dropping", self.count, start):
            self.checkpoint.save("costs", index, self._layer_costs(forward, index, next(sites)))
        shards.wait()

    def _find_rotations(self) -> None:
        """Keep the residual stream's rotations: ``residual/<first layer>``."""
        after_norm = [site.name for site in self.passes.adapter.sites if site.norm]
        names = after_norm[:1] if self.config.residual is RotationScope.site else after_norm
        for first in range(0, self.count, self.rotation_group):
            if not self.checkpoint.has("residual", first):
                layers = range(first, min(first + self.rotation_group, self.count))
                device = module_device(self.passes.layers[first])
                parts = (self.checkpoint.load("moments", layer) for layer in layers)
                rotation = residual_rotation(
                    part[name].to(device) for part in parts for name in names
                )
                self.checkpoint.save("residual", first, {"rotation": rotation.float()})

    def _candidates(self, start: int) -> Iterator[dict[str, list[Candidate]]]:
        """Yield the candidates of every layer from `start` on.

        Every process finds those of one layer at a time, beside the others.
        """
        for first in range(start, self.count, shards.count()):
            layers = range(first, min(first + shards.count(), self.count))
            own = self._candidates_at(layers[shards.rank()]) if shards.rank() < len(layers) else {}
            for source in range(len(layers)):
                yield unpacked(shards.shared(packed(own), source))

    def _candidates_at(self, index: int) -> dict[str, list[Candidate]]:
        passes = self.passes
        fishers = self.checkpoint.load("fisher", index) if self.config.uses_gradients else {}
        return candidates(
            passes.adapter, passes.heads, passes.layers[index],
            self.checkpoint.load("moments", index), fishers, self.rotation(index), self.config,
        )  # fmt: skip

    def _layer_costs(
        self, forward: LayerwiseForward, index: int, sites: Mapping[str, list[Candidate]]
    ) -> dict[str, Tensor]:
        adapter, layer = self.passes.adapter, self.passes.layers[index]
        forward.hidden = self.passes.entering(index)
        with ExitStack() as hooks:
            for name, parts in sites.items():
                for part in parts:
                    observer = after_prefix(self.config.dense_prefix, part.update)
                    hooks.enter_context(observing(adapter, layer, {name: observer}))
            forward.outputs(index)
        found = {}
        for name, parts in sites.items():
            for part in parts:
                thresholds, costs = part.histogram.below(SHARES)
                found[f"{name}.{part.basis}.thresholds"] = thresholds
                found[f"{name}.{part.basis}.costs"] = costs
                for what, tensor in part.saved.items():
                    found[f"{name}.{part.basis}.saved.{what}"] = tensor.cpu()
        return found
