"""Passes over the layers, one in memory at a time, each resumable after any layer.

The first goes forward and sums activations, the second backward and sums gradients. In the
checkpoint folder each keeps a file for every layer, and one for what its next layer starts from.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from trimtab.errors import TrimtabError
from trimtab.files import save_tensors
from trimtab.larosa.observation import capturing, observing
from trimtab.larosa.statistics import HeadMoment, SecondMoment, SquareSum
from trimtab.models.adapter import (
    Adapter,
    HeadShape,
    adapter_for,
    head_shape,
    input_width,
    norm_weight,
)
from trimtab.models.layerwise import LayerwiseForward
from trimtab.progress import track

NOT_FINITE = "are not finite: load the model in another dtype (model.dtype=float32)"
FRONT = "front.safetensors"  # what the next layer of a pass starts from


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
    checkpoint : Path
        Folder for the files of every layer.
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
        """Sum, forward through the layers, the activations after norms and of the attention.

        ``moments/<layer>`` holds float64 means over tokens: [width, width] of what every site's
        norm makes before its weight and bias, and [kv_heads, head_dim, head_dim] of the attention
        output. ``entering/<layer>`` holds the hidden states of the probe windows.

        Raises
        ------
        TrimtabError
            If activations are not finite.
        """
        start = self._completed("moments")
        if start == len(self.layers):
            return
        forward = LayerwiseForward(self.model, self.adapter, self.windows)
        if start:
            forward.hidden = load_file(self.checkpoint / "moments" / FRONT)["hidden"]
        for index in track(range(start, len(self.layers)), "Activations", len(self.layers), start):
            layer = self.layers[index]
            sums: dict[str, SecondMoment | HeadMoment] = {
                site.name: SecondMoment(input_width(self.adapter.readers(layer, site)[0]))
                for site in self.adapter.sites
                if site.norm is not None
            }
            sums[self.adapter.sites.attention_output.name] = self._head_moment()
            updates = {name: part.update for name, part in sums.items()}
            with observing(self.adapter, layer, updates):
                outputs = forward.outputs(index)
            found = {name: part.total.cpu() / forward.tokens for name, part in sums.items()}
            self._require_finite("activations", index, found)
            save_tensors(self.file("moments", index), found)
            save_tensors(self.file("entering", index), {"hidden": forward.hidden[: self.probes]})
            self._advance("moments", outputs, index + 1)
            forward.hidden = outputs

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
        count, start = len(self.layers), self._completed("fisher")
        if start == count:
            return
        forward = LayerwiseForward(self.model, self.adapter, self.windows[: self.probes])
        if start:
            gradient = load_file(self.checkpoint / "fisher" / FRONT)["hidden"]
        else:
            leaving = load_file(self.checkpoint / "moments" / FRONT)["hidden"][: self.probes]
            gradient = _gradient_of_predictions(forward, leaving)
        for done in track(range(start, count), "Gradients", count, start):
            index = count - 1 - done
            gradient, found = self._layer_gradients(forward, index, gradient)
            self._require_finite("gradients", index, found)
            save_tensors(self.file("fisher", index), found)
            self._advance("fisher", gradient, done + 1)

    def _layer_gradients(
        self, forward: LayerwiseForward, index: int, leaving: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the gradient at the layer's input, from that at its output, and the sums."""
        layer = self.layers[index]
        sums: dict[str, SecondMoment | HeadMoment | SquareSum] = {}
        for site in self.adapter.sites:
            width = input_width(self.adapter.readers(layer, site)[0])
            sums[site.name] = SecondMoment(width) if site.norm else SquareSum(width)
        sums[self.adapter.sites.attention_output.name] = self._head_moment()
        entering = []
        for hidden, gradient in zip(self.entering(index), leaving, strict=True):
            captured: dict[str, Tensor] = {}
            start = hidden[None].requires_grad_()
            with torch.enable_grad(), capturing(self.adapter, layer, captured):
                output = forward.run(index, start)
            first, *others = torch.autograd.grad(
                output, [start, *captured.values()], gradient[None].to(output.device)
            )
            entering.append(first[0].cpu())
            for name, part in zip(captured, others, strict=True):
                sums[name].update(part)
        tokens = leaving.shape[0] * leaving.shape[1]
        found = {name: part.total.cpu() / tokens for name, part in sums.items()}
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
                    f"{NOT_FINITE}"
                )

    def _head_moment(self) -> HeadMoment:
        return HeadMoment(self.heads.kv_heads, self.heads.head_dim)

    def entering(self, index: int) -> Tensor:
        """Return the probe windows' hidden states that a layer reads [windows, length, width]."""
        return load_file(self.file("entering", index))["hidden"]

    def load(self, kind: str, index: int) -> dict[str, Tensor]:
        """Return what a pass found at one layer."""
        return load_file(self.file(kind, index))

    def file(self, kind: str, index: int) -> Path:
        """Return where a pass keeps what it found at one layer."""
        return self.checkpoint / kind / f"{index:03d}.safetensors"

    def _advance(self, kind: str, hidden: Tensor, done: int) -> None:
        save_tensors(self.checkpoint / kind / FRONT, {"hidden": hidden}, done=str(done))

    def _completed(self, kind: str) -> int:
        """Return how many layers a pass completed before it was killed."""
        path = self.checkpoint / kind / FRONT
        if not path.exists():
            return 0
        try:
            with safe_open(path, framework="pt") as file:
                return int(file.metadata()["done"])
        except SafetensorError:
            return 0


def _gradient_of_predictions(forward: LayerwiseForward, leaving: Tensor) -> Tensor:
    """Return the gradient of the drawn tokens' negative log-likelihood [windows, length, width].

    Parameters
    ----------
    leaving : Tensor
        Hidden states after the last layer, of the same shape.
    """
    generator = torch.Generator().manual_seed(0)
    gradients = []
    for hidden in leaving:
        start = hidden[None].requires_grad_()
        with torch.enable_grad():
            logits = forward.logits(start)[0].float()
            if not logits.isfinite().all():
                raise TrimtabError(f"the model's predictions {NOT_FINITE}")
            drawn = torch.multinomial(logits.detach().softmax(-1).cpu(), 1, generator=generator)
            loss = nn.functional.cross_entropy(
                logits, drawn[:, 0].to(logits.device), reduction="sum"
            )
        gradients.append(torch.autograd.grad(loss, start)[0][0].cpu())
    return torch.stack(gradients)
