"""A decode plan that drops activations as LaRoSA does, without a calibration.

Only its time means anything. The weights are random, so those that a sparse product needs, inputs
before outputs, are the memory of the dense ones under another shape: no second copy of a model has
to fit. Transforms are random rotations in int8; thresholds drop the same share everywhere from the
tokens that it is made for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from trimtab_kernels.decode_step import DecodePlan, Layer, Linear, Selection, SiteInput

FITS = 16  # passes by which thresholds are found
FIRST = 0.5  # the threshold of the first pass
# By how much more is dropped once a threshold's logarithm grows by 1: for normal numbers 0.36 where
# 0.4 are dropped. A larger figure has thresholds settle, though each moves what others see.
SLOPE = 0.6
NAMES = "attention_input", "attention_output", "mlp_input", "mlp_activation"

Step = Callable[[DecodePlan], object]


def larosa_plan(plan: DecodePlan, sparsity: float, step: Step) -> tuple[DecodePlan, list[float]]:
    """Return a plan that drops a share of the activations at every site of every layer.

    Parameters
    ----------
    plan : DecodePlan
        Of a model whose weights lie side by side, see `models.lay_side_by_side`.
    sparsity : float
    step : callable
        Runs a plan on the tokens that thresholds are to fit.

    Returns
    -------
    plan : DecodePlan
    kept : list of float
        The share of the activations that these tokens keep, by layer and site.
    """
    width = plan.embedding.weight.shape[1]
    rotations = _Rotations(width, plan.embedding.weight.device)
    layers = [_reshaped(layer, rotations) for layer in plan.layers]
    count = len(NAMES) * len(layers)
    thresholds, kept = [FIRST] * count, [0.0] * count
    counts = torch.zeros(count, 2, dtype=torch.int64, device=rotations.device)
    for fit in range(FITS):
        if fit:
            pairs = zip(thresholds, kept, strict=True)
            thresholds = [t * math.exp((sparsity + share - 1) / SLOPE) for t, share in pairs]
        counts.zero_()
        step(_dropping(plan, layers, thresholds, [*counts]))
        kept = [left / of for left, of in counts.tolist()]
    # It goes on counting, as the plan of an applied method does.
    return _dropping(plan, layers, thresholds, [*counts]), kept


class _Rotations:
    """Different rotations in int8, all with the same scale of each column."""

    def __init__(self, width: int, device: torch.device) -> None:
        self.device = device
        matrix = torch.linalg.qr(torch.randn(width, width, device=device)).Q
        self.scale = matrix.abs().amax(0) / 127
        self._int8 = (matrix / self.scale).round().to(torch.int8)

    def draw(self) -> Tensor:
        """Return a rotation, of which no other's memory is part: its rows in another order."""
        return self._int8[torch.randperm(len(self._int8), device=self.device)].contiguous()


def _reshaped(layer: Layer, rotations: _Rotations) -> Layer:
    """Return a layer with transforms, and with weights of inputs before outputs."""

    def turned(site: SiteInput) -> SiteInput:
        return replace(site, transform=rotations.draw(), transform_scale=rotations.scale)

    return replace(
        layer,
        attention_input=turned(layer.attention_input),
        projections=(inputs_first(layer.projections),),
        output=inputs_first((layer.output,)),
        mlp_input=turned(layer.mlp_input),
        mlp=(inputs_first(layer.mlp),),
        down=inputs_first((layer.down,)),
    )


def inputs_first(linears: Sequence[Linear]) -> Linear:
    """Return one linear layer in the memory of some, whose weights get other places in it.

    Raises
    ------
    ValueError
        If they do not lie side by side.
    """
    first = linears[0].weight.detach()
    inputs, outputs = len(first), sum(one.weight.shape[1] for one in linears)
    place = first.data_ptr()
    for one in linears:
        if one.weight.data_ptr() != place or not one.weight.t().is_contiguous():
            raise ValueError("the weights of a site do not lie side by side")
        place += one.weight.nbytes
    weight = first.as_strided((inputs, outputs), (outputs, 1))
    biases = [one.bias for one in linears if one.bias is not None]
    return Linear(weight, torch.cat(biases) if biases else None)


def sites(layer: Layer) -> tuple[tuple[SiteInput, tuple[Linear, ...]], ...]:
    """Return the sites of a layer, each with the linear layers that read there."""
    return (
        (layer.attention_input, layer.projections),
        (layer.attention_output, (layer.output,)),
        (layer.mlp_input, layer.mlp),
        (layer.mlp_activation, (layer.down,)),
    )


def unread_bytes(plan: DecodePlan, kept: Sequence[float]) -> int:
    """Return the bytes of weights that a token leaves unread, less those of the transforms.

    Parameters
    ----------
    plan : DecodePlan
    kept : sequence of float
        See `larosa_plan`.
    """
    spared = 0.0
    every = [pair for layer in plan.layers for pair in sites(layer)]
    for (site, linears), share in zip(every, kept, strict=True):
        spared += (1 - share) * sum(one.weight.nbytes for one in linears)
        for one in (site.transform, site.transform_scale):
            spared -= 0 if one is None else one.nbytes
    return round(spared)


def _dropping(
    plan: DecodePlan,
    layers: Sequence[Layer],
    thresholds: Sequence[float],
    counts: Sequence[Tensor],
) -> DecodePlan:
    """Return a plan of layers with a selection at every site, by layer and site."""
    given = zip(thresholds, counts, strict=True)
    made = []
    for layer in layers:
        selecting = {}
        for name, (site, linears) in zip(NAMES, sites(layer), strict=True):
            threshold, counted = next(given)
            selection = Selection(len(linears[0].weight), threshold, 0, counted)
            selecting[name] = replace(site, selection=selection)
        made.append(replace(layer, **selecting))
    return replace(plan, layers=tuple(made))
