"""Put a plan to work on a live model, and undo it again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from trimtab.larosa.fold import FoldedLayer, fold
from trimtab.larosa.modules import (
    Keep,
    SparseLinear,
    SparseNorm,
    basis_changed,
    refuse_hidden_states,
    side_by_side,
)
from trimtab.larosa.plan import Plan
from trimtab.larosa.replaced import Aside, aside
from trimtab.larosa.residual import group_start
from trimtab.models.adapter import Site, adapter_for, centers, head_shape, module_device
from trimtab.models.changes import undone_in_order
from trimtab.progress import track
from trimtab_kernels.sparse_linear import gather_tokens, kernel_name


@dataclass
class SparseModel:
    """What a model whose layers drop activations reads.

    Attributes
    ----------
    weight_bytes : list of int
        Bytes of the weights that read every site of every layer, layer by layer.
    transform_bytes, basis_change_bytes : int
        Bytes of the sites' transforms, and of the residual stream's basis changes.
    kernel, prompt_kernel : str
        What multiplies one token with the weights, and what the tokens of a prompt.
    skips : bool
        Whether it leaves the rows that zeros multiply unread.
    """

    weight_bytes: list[int]
    transform_bytes: int
    basis_change_bytes: int
    kernel: str
    prompt_kernel: str
    skips: bool


@undone_in_order
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
        As `Calibrator.planned` returns them.
    selector : callable
        Returns the selector of a site, by the site's name and the layer's index. It is called
        layer by layer, in the order of the adapter's sites.
    """
    adapter, heads = adapter_for(model), head_shape(model.config)
    layers = adapter.decoder_layers(model)
    runs_on = model.device.type, model.dtype
    kernel, skips = kernel_name(*runs_on), gather_tokens(*runs_on) > 0
    sparse = SparseModel([], 0, 0, kernel, _prompt_kernel(*runs_on), skips)
    with aside(model) as away, ExitStack() as undo:
        if plan.rotation_group:
            undo.callback(refuse_hidden_states(adapter.decoder(model)).remove)
        for module, matrix in _basis_changes(model, plan, tensors):
            undo.enter_context(basis_changed(module, matrix))
            sparse.basis_change_bytes += matrix.nbytes
        for index, layer in enumerate(track(layers, "Applying larosa", len(layers))):
            prefix = f"layers.{index}."
            own = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
            bases = {name: row[index].basis for name, row in plan.sites.items()}
            rotation = _rotation(plan, tensors, index, module_device(layer))
            folded = fold(adapter, heads, layer, bases, own, rotation)
            parts = {site: selector(site.name, index) for site in adapter.sites}
            _replace(away, f"{adapter.layers}.{index}", folded, parts, sparse)
        del folded, own, rotation  # not to be held for as long as the model is
        yield sparse


def _prompt_kernel(device: str, dtype: torch.dtype) -> str:
    """Return what multiplies the tokens of a prompt, whose number decides."""
    few = gather_tokens(device, dtype)
    many = kernel_name(device, dtype, few + 1)
    return f"{many} (up to {few} tokens, the kernel for one)" if few > 1 else many


def _replace(
    away: Aside, place: str, folded: FoldedLayer, parts: Mapping[Site, Keep], sparse: SparseModel
) -> None:
    """Put a folded layer's parts in the places of the layer's own, and count them in `sparse`."""
    for site, part in parts.items():
        sparse.weight_bytes.append(sum(folded.linears[name][0].nbytes for name in site.readers))
        linears = side_by_side([folded.linears.pop(name) for name in site.readers])
        for name, (weight, bias) in zip(site.readers, linears, strict=True):
            linear = SparseLinear(weight, bias, None if site.norm else part)
            away.replace(f"{place}.{name}", linear)
        if site.norm is not None:
            transform, scale = folded.transforms.get(site.name, (None, None))
            norm = SparseNorm(folded.norms[site.norm], transform, scale, part)
            sparse.transform_bytes += norm.transform_bytes
            away.replace(f"{place}.{site.norm}", norm)


def _rotation(
    plan: Plan, tensors: Mapping[str, Tensor], index: int, device: torch.device
) -> Tensor | None:
    """Return Q of the residual stream at a layer, float64; None where it is not rotated."""
    if not plan.rotation_group:
        return None
    first = group_start(plan.rotation_group, index)
    return tensors[f"residual.{first}"].to(device, torch.float64)


def _basis_changes(
    model: PreTrainedModel, plan: Plan, tensors: Mapping[str, Tensor]
) -> Iterator[tuple[nn.Module, Tensor]]:
    """Yield the modules before which the residual stream's basis changes, and the matrices.

    The first change also takes the mean away where LayerNorm would. The last one leads back, so
    that final norm and head stay as they are.
    """
    if not plan.rotation_group:
        return
    adapter, before = adapter_for(model), None
    for index, layer in enumerate(adapter.decoder_layers(model)):
        if index % plan.rotation_group:
            continue
        rotation = _rotation(plan, tensors, index, torch.device("cpu"))
        assert rotation is not None
        if before is None:
            norm = adapter.sites.attention_input.norm
            centred = norm is not None and centers(layer.get_submodule(norm))
            change = rotation - rotation.mean(0) if centred else rotation
        else:
            change = before.T @ rotation
        yield layer, change.to(module_device(layer), model.dtype).contiguous()
        before = rotation
    assert before is not None
    final = model.get_submodule(adapter.final_norm)
    yield final, before.T.to(module_device(final), model.dtype).contiguous()
