"""Put a plan to work on a live model, and take it off again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from trimtab.larosa.fold import fold
from trimtab.larosa.modules import Keep, SparseLinear, SparseNorm, replaced
from trimtab.larosa.plan import Plan
from trimtab.models.adapter import (
    Adapter,
    adapter_for,
    centers,
    head_shape,
    module_device,
    norm_gain,
)
from trimtab.progress import track
from trimtab_kernels.sparse_linear import kernel_name


@dataclass
class SparseModel:
    """What a model whose layers drop activations reads.

    Attributes
    ----------
    weight_bytes : list of int
        Bytes of the weights behind every site of every layer, layer by layer.
    transform_bytes, adapter_bytes : int
        Bytes of the sites' transforms, and of the residual stream's adapters.
    kernel : str
        What multiplies one token with the weights.
    skips : bool
        Whether it leaves the rows behind zeros unread.
    """

    weight_bytes: list[int]
    transform_bytes: int
    adapter_bytes: int
    kernel: str
    skips: bool


@contextmanager
def sparsified(
    model: PreTrainedModel,
    plan: Plan,
    tensors: Mapping[str, Tensor],
    selector: Callable[[str, int], Keep],
) -> Iterator[SparseModel]:
    """Have every layer transform, drop and skip for the time of the ``with``.

    Parameters
    ----------
    tensors : mapping
        As `Calibrator.run` returns them.
    selector : callable
        Returns the selection of a site, by its name and the layer's index. Called layer by layer,
        in the order of the adapter's sites.
    """
    adapter, heads = adapter_for(model), head_shape(model.config)
    layers = adapter.decoder_layers(model)
    weight_bytes: list[int] = []
    with ExitStack() as undo:
        transform_bytes = 0
        adapter_bytes = _rotate_stream(undo, model, adapter, layers, plan, tensors)
        for index, layer in enumerate(track(layers, "Applying larosa", len(layers))):
            prefix = f"layers.{index}."
            mine = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
            bases = {name: row[index].basis for name, row in plan.sites.items()}
            rotation = _rotation(plan, tensors, index, module_device(layer))
            folded = fold(adapter, heads, layer, bases, mine, rotation)
            for site in adapter.sites:
                part = selector(site.name, index)
                weight_bytes.append(sum(folded.linears[name][0].nbytes for name in site.readers))
                for name in site.readers:
                    linear = SparseLinear(*folded.linears.pop(name), None if site.norm else part)
                    undo.enter_context(replaced(layer, name, linear))
                if site.norm is not None:
                    transform, scale = folded.transforms.get(site.name, (None, None))
                    norm = SparseNorm(folded.norms[site.norm], transform, scale, part)
                    transform_bytes += norm.transform_bytes
                    undo.enter_context(replaced(layer, site.norm, norm))
        del folded, mine, rotation  # not to be held for as long as the model is
        kernel = kernel_name(model.device.type, model.dtype)
        skips = not kernel.startswith("reference")
        yield SparseModel(weight_bytes, transform_bytes, adapter_bytes, kernel, skips)


def _rotation(
    plan: Plan, tensors: Mapping[str, Tensor], index: int, device: torch.device
) -> Tensor | None:
    if not plan.span:
        return None
    return tensors[f"residual.{index // plan.span * plan.span}"].to(device, torch.float64)


def _rotate_stream(
    undo: ExitStack,
    model: PreTrainedModel,
    adapter: Adapter,
    layers: Sequence[nn.Module],
    plan: Plan,
    tensors: Mapping[str, Tensor],
) -> int:
    """Put adapters where the residual stream's basis changes, and return their bytes.

    The first one takes the mean away that LayerNorm would. The last one leads back, so that final
    norm and head stay as they are.
    """
    if not plan.span:
        return 0
    total = 0
    before: Tensor | None = None
    for index, layer in enumerate(layers):
        if index % plan.span:
            continue
        rotation = _rotation(plan, tensors, index, torch.device("cpu"))
        assert rotation is not None
        if before is None:
            norm = layer.get_submodule(next(site.norm for site in adapter.sites if site.norm))
            change = rotation - rotation.mean(0) if centers(norm) else rotation
        else:
            change = before.T @ rotation
        total += _adapt(undo, layer, change, model.dtype, module_device(layer))
        before = rotation
    assert before is not None
    final = model.get_submodule(adapter.final_norm)
    return total + _adapt(undo, final, before.T, model.dtype, norm_gain(final).device)


def _adapt(
    undo: ExitStack, module: nn.Module, change: Tensor, dtype: torch.dtype, device: torch.device
) -> int:
    """Multiply what a module reads by `change`, and return the bytes of it."""
    stored = change.to(device, dtype)

    def hook(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (inputs[0] @ stored, *inputs[1:])

    undo.callback(module.register_forward_pre_hook(hook).remove)
    return stored.nbytes
