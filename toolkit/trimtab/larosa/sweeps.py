"""Passes over the layers, one in memory at a time, each resumable after any layer.

The first goes forward and sums activations, the second goes backward and sums gradients. Every
layer leaves a file of its own in the checkpoint folder, and what the next one starts from.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from trimtab.files import save_tensors
from trimtab.larosa.statistics import HeadMoment, SecondMoment, SquareSum
from trimtab.larosa.watch import noting, seeing
from trimtab.models.adapter import (
    Adapter,
    HeadShape,
    adapter_for,
    head_shape,
    input_width,
    norm_gain,
)
from trimtab.models.layerwise import LayerwiseForward
from trimtab.progress import track

FRONT = "front.safetensors"  # what the next layer of a pass starts from


@dataclass
class Sweeps:
    """The passes over one model and one text.

    Parameters
    ----------
    model : PreTrainedModel
    windows : Tensor
        Token ids, int64 of shape [windows, length].
    probes : int
        How many of the windows gradients and costs are measured on.
    checkpoint : Path
        Folder for what every layer leaves.
    """

    model: PreTrainedModel
    windows: Tensor
    probes: int
    checkpoint: Path

    def __post_init__(self) -> None:
        self.adapter: Adapter = adapter_for(self.model)
        self.heads: HeadShape = head_shape(self.model.config)
        self.layers = self.adapter.decoder_layers(self.model)

    def moments(self) -> None:
        """Sum, forward through the layers, the activations of every site behind a norm and of h2.

        ``moments-<layer>``: h1 and h3 [width, width], of what the norm makes before its gain and
        shift; h2 [kv_heads, head_dim, head_dim]; float64 means over tokens. ``entering-<layer>``:
        the hidden states of the probe windows.
        """
        start = self._next("moments")
        if start == len(self.layers):
            return
        stream = LayerwiseForward(self.model, self.adapter, self.windows)
        if start:
            stream.hidden = load_file(self.checkpoint / "moments" / FRONT)["hidden"]
        for index in track(range(start, len(self.layers)), "Activations", len(self.layers), start):
            layer = self.layers[index]
            sums: dict[str, SecondMoment | HeadMoment] = {
                site.name: SecondMoment(input_width(self.adapter.readers(layer, site)[0]))
                for site in self.adapter.sites
                if site.norm is not None
            }
            sums["h2"] = HeadMoment(self.heads.kv_heads, self.heads.head_dim)
            with seeing(self.adapter, layer, {name: part.update for name, part in sums.items()}):
                outputs = stream.outputs(index)
            found = {name: part.total.cpu() / stream.tokens for name, part in sums.items()}
            save_tensors(self.file("moments", index), found)
            save_tensors(self.file("entering", index), {"hidden": stream.hidden[: self.probes]})
            self._advance("moments", outputs, index + 1)
            stream.hidden = outputs

    def sensitivities(self) -> None:
        """Sum, backward through the layers, the gradients at every site.

        Of the log-likelihood of tokens drawn from the model's own predictions, so that their
        second moment is the Fisher matrix. ``sensitivities-<layer>``: h1 and h3 [width, width], in
        the coordinates of `moments`; h2 [kv_heads, head_dim, head_dim]; h4 [width], the diagonal;
        float64 means over tokens.
        """
        count, start = len(self.layers), self._next("sensitivities")
        if start == count:
            return
        stream = LayerwiseForward(self.model, self.adapter, self.windows[: self.probes])
        if start:
            gradient = load_file(self.checkpoint / "sensitivities" / FRONT)["hidden"]
        else:
            leaving = load_file(self.checkpoint / "moments" / FRONT)["hidden"][: self.probes]
            gradient = _gradient_of_predictions(stream, leaving)
        for done in track(range(start, count), "Gradients", count, start):
            index = count - 1 - done
            gradient, found = self._layer_gradients(stream, index, gradient)
            save_tensors(self.file("sensitivities", index), found)
            self._advance("sensitivities", gradient, done + 1)

    def _layer_gradients(
        self, stream: LayerwiseForward, index: int, leaving: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        layer = self.layers[index]
        sums: dict[str, SecondMoment | HeadMoment | SquareSum] = {}
        for site in self.adapter.sites:
            width = input_width(self.adapter.readers(layer, site)[0])
            sums[site.name] = SecondMoment(width) if site.norm else SquareSum(width)
        sums["h2"] = HeadMoment(self.heads.kv_heads, self.heads.head_dim)
        entering = []
        for hidden, gradient in zip(self.entering(index), leaving, strict=True):
            seen: dict[str, Tensor] = {}
            start = hidden[None].requires_grad_()
            with torch.enable_grad(), noting(self.adapter, layer, seen):
                output = stream.run(index, start)
            first, *others = torch.autograd.grad(
                output, [start, *seen.values()], gradient[None].to(output.device)
            )
            entering.append(first[0].cpu())
            for name, part in zip(seen, others, strict=True):
                sums[name].update(part)
        tokens = leaving.shape[0] * leaving.shape[1]
        found = {name: part.total.cpu() / tokens for name, part in sums.items()}
        for site in self.adapter.sites:
            if site.norm is not None:
                gain = norm_gain(layer.get_submodule(site.norm)).cpu()
                found[site.name] *= gain[:, None] * gain
        return torch.stack(entering), found

    def entering(self, index: int) -> Tensor:
        """Return the probe windows' hidden states that a layer reads [windows, length, width]."""
        return load_file(self.file("entering", index))["hidden"]

    def load(self, kind: str, index: int) -> dict[str, Tensor]:
        """Return what a pass found at one layer, float64."""
        return load_file(self.file(kind, index))

    def file(self, kind: str, index: int) -> Path:
        """Return where one layer's share of a pass is kept."""
        return self.checkpoint / kind / f"{index:03d}.safetensors"

    def _advance(self, kind: str, hidden: Tensor, done: int) -> None:
        save_tensors(self.checkpoint / kind / FRONT, {"hidden": hidden}, done=str(done))

    def _next(self, kind: str) -> int:
        """Return how many layers a killed pass has behind it."""
        path = self.checkpoint / kind / FRONT
        if not path.exists():
            return 0
        try:
            with safe_open(path, framework="pt") as file:
                return int(file.metadata()["done"])
        except SafetensorError:
            return 0


def _gradient_of_predictions(stream: LayerwiseForward, leaving: Tensor) -> Tensor:
    """Return the gradient of the drawn tokens' negative log-likelihood [windows, length, width]."""
    generator = torch.Generator().manual_seed(0)
    gradients = []
    for hidden in leaving:
        start = hidden[None].requires_grad_()
        with torch.enable_grad():
            logits = stream.logits(start)[0].float()
            drawn = torch.multinomial(logits.detach().softmax(-1).cpu(), 1, generator=generator)
            loss = nn.functional.cross_entropy(
                logits, drawn[:, 0].to(logits.device), reduction="sum"
            )
        gradients.append(torch.autograd.grad(loss, start)[0][0].cpu())
    return torch.stack(gradients)
