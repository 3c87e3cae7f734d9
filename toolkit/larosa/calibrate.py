"""Calibration of LaRoSA: one decoder layer in memory at a time, resumable after each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from toolkit.files import save_tensors
from toolkit.larosa.rotation import Basis, transform_for
from toolkit.larosa.sparsify import observed
from toolkit.larosa.statistics import MagnitudeHistogram, SecondMoment
from toolkit.method import Calibration
from toolkit.models.adapter import Adapter, adapter_for, input_major, input_width
from toolkit.models.layerwise import LayerwiseForward
from toolkit.progress import track

HIDDEN = "hidden.safetensors"


def calibrate_layers(
    model: PreTrainedModel,
    windows: Tensor,
    checkpoint: Path,
    *,
    basis: Basis,
    threshold_share: float | None,
) -> Calibration:
    """Return the transforms and thresholds of every layer.

    After each layer its tensors, then the hidden states that the next one reads, are saved in
    `checkpoint`; a later call starts from there. Tensors are named
    ``layers.<index>.<site>.<what>``, where what is ``transform`` (float32 [d, d]),
    ``variance`` (float32 [d], the mean square along each axis) or ``threshold`` (float32).

    Parameters
    ----------
    windows : Tensor
        Token ids, int64 of shape [windows, length].
    basis : Basis
        Of the sites behind a norm.
    threshold_share : float or None
        Share of the activations below the thresholds; None where no thresholds are wanted.
    """
    statistics = {"tokens": windows.numel(), "windows": len(windows)}
    if basis is Basis.none and threshold_share is None:
        return Calibration({}, statistics)
    adapter = adapter_for(model)
    stream = LayerwiseForward(model, adapter, windows)
    count = len(stream.layers)
    start = _resume(stream, checkpoint)
    for index in track(range(start, count), "Calibrating layers", count, done=start):
        outputs, tensors = _calibrate_layer(stream, index, adapter, basis, threshold_share)
        save_tensors(checkpoint / _layer_file(index), tensors)
        save_tensors(checkpoint / HIDDEN, {"hidden": outputs}, next=str(index + 1))
        stream.hidden = outputs
    merged = {
        f"layers.{index}.{name}": tensor
        for index in range(count)
        for name, tensor in load_file(checkpoint / _layer_file(index)).items()
    }
    return Calibration(merged, {**statistics, "leading_half_energy": _leading_half(merged)})


def _calibrate_layer(
    stream: LayerwiseForward,
    index: int,
    adapter: Adapter,
    basis: Basis,
    threshold_share: float | None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return what the layer computes, and its calibrated tensors without the layer's prefix."""
    layer = stream.layers[index]
    readers = {site.name: adapter.readers(layer, site)[0] for site in adapter.sites}
    tensors: dict[str, Tensor] = {}

    def run(watchers: Mapping[str, Callable[[Tensor], None]]) -> Tensor:
        with ExitStack() as hooks:
            for name, watcher in watchers.items():
                hooks.enter_context(observed(readers[name], watcher))
            return stream.outputs(index)

    if basis is not Basis.none:
        behind_norm = {site.name: site for site in adapter.sites if site.norm is not None}
        moments = {name: SecondMoment(input_width(readers[name])) for name in behind_norm}
        outputs = run({name: moment.update for name, moment in moments.items()})
        for name, moment in moments.items():
            reading = adapter.readers(layer, behind_norm[name])
            weight = torch.cat([input_major(reader) for reader in reading], dim=1)
            variance, transform = transform_for(basis, moment.total / stream.tokens, weight)
            tensors[f"{name}.transform"] = transform.float().cpu()
            tensors[f"{name}.variance"] = variance.float().cpu()
    if threshold_share is not None:
        # A second pass: what is dropped is measured in the basis the first one found.
        histograms = {name: MagnitudeHistogram() for name in readers}
        outputs = run(
            {
                name: _counting(histogram, tensors.get(f"{name}.transform"))
                for name, histogram in histograms.items()
            }
        )
        for name, histogram in histograms.items():
            tensors[f"{name}.threshold"] = torch.tensor(histogram.quantile(threshold_share))
    return outputs, tensors


def _counting(histogram: MagnitudeHistogram, transform: Tensor | None) -> Callable[[Tensor], None]:
    if transform is None:
        return histogram.update
    return lambda x: histogram.update(x @ transform.to(x.device, x.dtype))


def _leading_half(tensors: Mapping[str, Tensor]) -> dict[str, list[float]]:
    """Return, per site and layer, the share of energy in the leading half of the axes."""
    shares: dict[str, list[float]] = {}
    for name, variance in tensors.items():
        *_, site, what = name.split(".")
        if what == "variance":
            energy = variance.double()
            share = float(energy[: len(energy) // 2].sum() / energy.sum())
            shares.setdefault(site, []).append(share)
    return shares


def _layer_file(index: int) -> str:
    return f"layer-{index:03d}.safetensors"


def _resume(stream: LayerwiseForward, checkpoint: Path) -> int:
    """Load the hidden states a killed calibration left, and return the layer that reads them."""
    path = checkpoint / HIDDEN
    if not path.exists():
        return 0
    try:
        with safe_open(path, framework="pt") as file:
            hidden, start = file.get_tensor("hidden"), int(file.metadata()["next"])
    except SafetensorError:
        return 0
    stream.hidden = hidden
    return start
