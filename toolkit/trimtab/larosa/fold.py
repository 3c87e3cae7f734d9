"""Fold a layer's plan into its norms and linear layers, in float64.

A linear layer that reads activations mapped by M gets M⁻¹ as a factor of its weight, and one that
makes activations to be mapped gets M as a factor, so that at sparsity 0 the model computes what it
did before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from trimtab.larosa.bases import per_head, undone
from trimtab.larosa.precision import transform_matrix
from trimtab.larosa.settings import PLAIN, TRANSFORM
from trimtab.models.adapter import (
    Adapter,
    HeadShape,
    Site,
    centers,
    input_major,
    norm_bias,
    norm_epsilon,
    norm_weight,
)

KEPT_AS_STORED = ("transform_scale",)  # whatever the model's dtype


@dataclass
class FoldedLayer:
    """The parts of a decoder layer after folding.

    Attributes
    ----------
    linears : dict of str to (Tensor, Tensor or None)
        Input-major weight and bias by the linear layer's name, in the model's dtype.
    norms : dict of str to Module
        The new norms, by the names of the old ones.
    transforms : dict of str to (Tensor, Tensor or None)
        T by the site's name, in the model's dtype, or int8 with the scale of its columns.
    """

    linears: dict[str, tuple[Tensor, Tensor | None]] = field(default_factory=dict)
    norms: dict[str, nn.Module] = field(default_factory=dict)
    transforms: dict[str, tuple[Tensor, Tensor | None]] = field(default_factory=dict)


def fold(
    adapter: Adapter,
    heads: HeadShape,
    layer: nn.Module,
    bases: Mapping[str, str],
    tensors: Mapping[str, Tensor],
    rotation: Tensor | None,
) -> FoldedLayer:
    """Return a decoder layer's parts with its plan folded in; the layer itself is not changed.

    Parameters
    ----------
    bases : mapping
        `SitePlan.basis` by the site's name.
    tensors : mapping
        The layer's calibrated tensors, named ``<site>.<what>`` as in `Calibrator.planned`.
    rotation : Tensor or None
        Q of the residual stream at this layer, float64 of shape [d, d].
    """
    linears = {
        name: _Linear(layer.get_submodule(name)) for site in adapter.sites for name in site.readers
    }
    folded = FoldedLayer()
    for site in adapter.sites:
        readers = [linears[name] for name in site.readers]
        prefix, device = f"{site.name}.", readers[0].weight.device
        found = {
            name.removeprefix(prefix): tensor.to(device)
            for name, tensor in tensors.items()
            if name.startswith(prefix)
        }
        if site.norm is not None:
            _fold_after_norm(folded, layer, site, readers, bases[site.name], found, rotation)
        elif "transform" in found:
            blocks = found["transform"].double()
            linears[adapter.values].map_outputs(torch.block_diag(*blocks))
            readers[0].undo_before(per_head(blocks, heads.heads))
        elif "up_scale" in found:
            assert adapter.up is not None
            linears[adapter.up].map_outputs(found["up_scale"].double())
            readers[0].undo_before(found["up_scale"].double())
    if rotation is not None:
        centred = any(
            centers(layer.get_submodule(site.norm)) for site in adapter.sites if site.norm
        )
        for name in adapter.writers:
            linears[name].rotate_outputs(rotation, centred)
    folded.linears = {name: linear.stored() for name, linear in linears.items()}
    return folded


def _fold_after_norm(
    folded: FoldedLayer,
    layer: nn.Module,
    site: Site,
    readers: list[_Linear],
    basis: str,
    found: dict[str, Tensor],
    rotation: Tensor | None,
) -> None:
    assert site.norm is not None
    norm = layer.get_submodule(site.norm)
    weight, bias, dtype = norm_weight(norm), norm_bias(norm), readers[0].dtype
    for reader in readers:
        if bias is not None:
            reader.absorb_bias(bias)
        reader.weight = weight[:, None] * reader.weight
        if rotation is not None:
            reader.weight = rotation.T @ reader.weight
    stored = {
        what: tensor if what in KEPT_AS_STORED or tensor.dtype == torch.int8 else tensor.to(dtype)
        for what, tensor in found.items()
    }
    if basis == TRANSFORM:
        folded.transforms[site.name] = stored["transform"], stored.get("transform_scale")
        matrix = transform_matrix(stored)
    else:
        assert (basis == PLAIN) == (rotation is None)
        matrix = stored["norm_weight"].double()
    for reader in readers:
        reader.undo_before(matrix)
    rms = rotation is not None or not centers(norm)
    folded.norms[site.norm] = plain_norm(rms, stored["norm_weight"], norm_epsilon(norm))


def plain_norm(rms: bool, weight: Tensor, epsilon: float) -> nn.Module:
    """Return PyTorch's RMSNorm or LayerNorm with this weight and no bias."""
    kind, options = (nn.RMSNorm, {}) if rms else (nn.LayerNorm, {"bias": False})
    norm = kind(len(weight), epsilon, device="meta", dtype=weight.dtype, **options)
    norm.weight = nn.Parameter(weight, requires_grad=False)
    return norm


class _Linear:
    """Weight and bias of a linear layer while maps are folded into them, float64."""

    def __init__(self, module: nn.Module) -> None:
        weight = input_major(module)
        self.dtype = weight.dtype
        self.weight = weight.double()
        bias = module.bias
        self.bias = bias.double() if isinstance(bias, Tensor) else None

    def undo_before(self, matrix: Tensor) -> None:
        """Undo a map of the inputs."""
        self.weight = undone(self.weight, matrix)

    def map_outputs(self, matrix: Tensor) -> None:
        """Apply a map to the last outputs, as many as it is wide."""
        size = len(matrix)

        def mapped(part: Tensor) -> Tensor:
            last = part[..., -size:]
            last = last * matrix if matrix.ndim == 1 else last @ matrix
            return torch.cat([part[..., :-size], last], dim=-1)

        self.weight = mapped(self.weight)
        self.bias = None if self.bias is None else mapped(self.bias)

    def rotate_outputs(self, rotation: Tensor, centred: bool) -> None:
        """Rotate what is added to the residual stream, without its mean if `centred`.

        A stream from which every norm subtracts the mean may go without it. LayerNorm is then
        RMSNorm, which a rotation passes (SliceGPT, arXiv 2401.15024, section 3.1).
        """
        for name in ("weight", "bias"):
            part = getattr(self, name)
            if part is not None:
                part = part - part.mean(-1, keepdim=True) if centred else part
                setattr(self, name, part @ rotation)

    def absorb_bias(self, bias: Tensor) -> None:
        """Add what a bias of the inputs gives to the outputs."""
        given = bias @ self.weight
        self.bias = given if self.bias is None else self.bias + given

    def stored(self) -> tuple[Tensor, Tensor | None]:
        """Return weight and bias in the model's dtype."""
        bias = None if self.bias is None else self.bias.to(self.dtype)
        return self.weight.to(self.dtype).contiguous(), bias
