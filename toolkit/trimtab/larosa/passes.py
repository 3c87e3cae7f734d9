"""Passes over the layers, one in memory at a time, each resumable after any layer.

The first goes forward and sums activations, the second backward and sums gradients. In the
checkpoint folder each keeps a file for every layer, and one for what its next layer starts from.
Processes that share the calibration run their own windows; the files are those of one process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from trimtab import shards
from trimtab.errors import TrimtabError
from trimtab.larosa.checkpoint import Checkpoint
from trimtab.larosa.observation import after_prefix, capturing, observing
from trimtab.larosa.statistics import HeadMoment, SecondMoment, SquareSum
from trimtab.models.adapter import (
    Adapter,
    HeadShape,
    adapter_for,
    head_shape,
    input_width,
    module_device,
    norm_weight,
)
from trimtab.models.gradients import gradients, repeatable
from trimtab.models.layerwise import LayerwiseForward
from trimtab.models.state import mend_not_finite
from trimtab.progress import track


@dataclass
class Passes:
    """The passes over one model and one text.

    Parameters
    ----------
    model : PreTrainedModel
    windows : Tensor
        Token ids, int64 of shape [windows, length].
    probes : int
        How many of the windows gradients and costs are measured on.
    checkpoint : Checkpoint
        For the files of every layer.
    dense_prefix : int
        Leading tokens of every window that drop nothing and so count for nothing.
    """

    model: PreTrainedModel
    windows: Tensor
    probes: int
    checkpoint: Checkpoint
    dense_prefix: int

    def __post_init__(self) -> None:
        self.adapter: Adapter = adapter_for(self.model)
        self.heads: HeadShape = head_shape(self.model.config)
        self.layers = self.adapter.decoder_layers(self.model)

    def moments(self) -> None:
        """Sum, forward through the layers, the activations after norms and of the attention.

        ``moments/<layer>`` holds float64 means over tokens: [width, width] of what every site's
        norm makes before its weight and bias, and [kv_heads, head_dim, head_dim] of the attention
        output. ``entering/<layer>`` holds the hidden states of the probe windows.

        Raises
        ------
        TrimtabError
            If activations are not finite.
        """
        start = self.checkpoint.done("moments")
        if start == len(self.layers):
            return
        forward = LayerwiseForward(self.model, self.adapter, shards.mine(self.windows))
        if start:
            forward.hidden = shards.mine(self.checkpoint.load_front("moments"))
        entering = shards.whole(forward.hidden)
        for index in track(range(start, len(self.layers)), "Activations", len(self.layers), start):
            layer = self.layers[index]
            sums: dict[str, SecondMoment | HeadMoment] = {
                site.name: SecondMoment(input_width(self.adapter.readers(layer, site)[0]))
                for site in self.adapter.sites
                if site.norm is not None
            }
            sums[self.adapter.sites.attention_output.name] = self._head_moment()
            updates = {
                name: after_prefix(self.dense_prefix, part.update) for name, part in sums.items()
            }
            with observing(self.adapter, layer, updates):
                outputs = forward.outputs(index)
            found = {
                name: part.total() / self._counted(self.windows) for name, part in sums.items()
            }
            self._require_finite("activations", index, found)
            self.checkpoint.save("moments", index, found)
            self.checkpoint.save("entering", index, {"hidden": entering[: self.probes]})
            entering = shards.whole(outputs)
            self.checkpoint.save_front("moments", entering, index + 1)
            forward.hidden = outputs
        shards.wait()

    def fisher(self) -> None:
        """Sum, backward through the layers, the gradients at every site.

        They are those of the log-likelihood of tokens drawn from the model's own predictions, so
        that their second moment is the Fisher information. ``fisher/<layer>`` holds float64 means
        over tokens: [width, width] after norms, in the coordinates of `moments`; [kv_heads,
        head_dim, head_dim] of the attention output; and [width], the diagonal alone, of the MLP
        activation.

        Raises
        ------
        TrimtabError
            If gradients are not finite.
        """
        count, start = len(self.layers), self.checkpoint.done("fisher")
        if start == count:
            return
        probes = shards.mine(self.windows[: self.probes])
        forward = LayerwiseForward(self.model, self.adapter, probes)
        if start:
            gradient = shards.mine(self.checkpoint.load_front("fisher"))
        else:
            leaving = shards.mine(self.checkpoint.load_front("moments")[: self.probes])
            seeds = shards.mine(torch.arange(self.probes)).tolist()
            gradient = _gradient_of_predictions(forward, leaving, seeds)
        for done in track(range(start, count), "Gradients", count, start):
            index = count - 1 - done
            gradient, found = self._layer_gradients(forward, index, gradient)
            self._require_finite("gradients", index, found)
            self.checkpoint.save("fisher", index, found)
            self.checkpoint.save_front("fisher", shards.whole(gradient), done + 1)
        shards.wait()

    def _layer_gradients(
        self, forward: LayerwiseForward, index: int, leaving: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the gradient at the layer's input, from that at its output, and the sums."""
        layer = self.layers[index]
        device = module_device(layer)
        sums: dict[str, SecondMoment | HeadMoment | SquareSum] = {}
        for site in self.adapter.sites:
            width = input_width(self.adapter.readers(layer, site)[0])
            sums[site.name] = SecondMoment(width) if site.norm else SquareSum(width)
        sums[self.adapter.sites.attention_output.name] = self._head_moment()
        entering = []
        for hidden, gradient in zip(self.entering(index), leaving, strict=True):
            captured: dict[str, Tensor] = {}
            start = hidden[None].requires_grad_()
            with torch.enable_grad(), repeatable(device), capturing(self.adapter, layer, captured):
                output = forward.run(index, start)
            first, *others = gradients(output, [start, *captured.values()], gradient[None])
            entering.append(first[0].cpu())
            for name, part in zip(captured, others, strict=True):
                after_prefix(self.dense_prefix, sums[name].update)(part)
        tokens = self._counted(self.windows[: self.probes])
        found = {name: part.total() / tokens for name, part in sums.items()}
        for site in self.adapter.sites:
            if site.norm is not None:
                weight = norm_weight(layer.get_submodule(site.norm)).cpu()
                found[site.name] *= weight[:, None] * weight
        return torch.stack(entering), found

    def _require_finite(self, what: str, index: int, found: dict[str, Tensor]) -> None:
        for site in self.adapter.sites:
            if site.name in found and not found[site.name].isfinite().all():
                raise TrimtabError(
                    f"the calibration {what} at the {site.title} ({site.name}) of layer {index} "
                    f"are not finite: {mend_not_finite(self.model)}"
                )

    def _counted(self, windows: Tensor) -> int:
        """Return how many tokens of the windows may drop something."""
        return len(windows) * (windows.shape[1] - self.dense_prefix)

    def _head_moment(self) -> HeadMoment:
        return HeadMoment(self.heads.kv_heads, self.heads.head_dim)

    def entering(self, index: int) -> Tensor:
        """Return the hidden states that a layer reads, of this process' share of the probes.

        Returns
        -------
        Tensor
            Of shape [windows, length, width].
        """
        return shards.mine(self.checkpoint.load("entering", index)["hidden"])


def _gradient_of_predictions(
    forward: LayerwiseForward, leaving: Tensor, seeds: Sequence[int]
) -> Tensor:
    """Return the gradient of the drawn tokens' negative log-likelihood [windows, length, width].

    It is in the dtype of `leaving`, or in float32 where that is float16.

    Parameters
    ----------
    leaving : Tensor
        Hidden states after the last layer, of the same shape.
    seeds : sequence of int
        What each window's tokens are drawn with.
    """
    found = []
    for hidden, seed in zip(leaving, seeds, strict=True):
        generator = torch.Generator().manual_seed(seed)
        start = hidden[None].requires_grad_()
        with torch.enable_grad():
            logits = forward.logits(start)[0]
            wide = logits.detach().float().requires_grad_()
            if not wide.isfinite().all():
                raise TrimtabError(
                    f"the model's predictions are not finite: {mend_not_finite(forward.model)}"
                )
            drawn = torch.multinomial(wide.detach().softmax(-1).cpu(), 1, generator=generator)
            loss = nn.functional.cross_entropy(wide, drawn[:, 0].to(wide.device), reduction="sum")
        (at_logits,) = torch.autograd.grad(loss, wide)
        found.append(gradients(logits, [start], at_logits)[0][0].cpu())
    return torch.stack(found)
