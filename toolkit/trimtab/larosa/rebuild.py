"""Build a sparse model from a config and tensors alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from trimtab.larosa.fold import plain_norm
from trimtab.larosa.modules import (
    BASIS_CHANGE,
    SparseLinear,
    SparseNorm,
    change_basis,
    refuse_hidden_states,
)
from trimtab.larosa.selection import Selectors
from trimtab.models.adapter import adapter_for


def without_tensors(folder: Path) -> PreTrainedModel:
    """Return the model that a folder's config describes, its parameters on the meta device."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    del config.transformers_weights
    # Buffers that no file holds, such as the frequencies of RoPE, are computed here.
    with init_empty_weights(include_buffers=False):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=config.dtype)
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    return model.eval().requires_grad_(False)


def install(
    model: PreTrainedModel,
    tensors: Mapping[str, Tensor],
    norms: Mapping[str, Mapping[str, Any]],
    tied: Mapping[str, str],
    selectors: Selectors,
) -> None:
    """Make a model without tensors a sparse one, for good.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        Every tensor of the sparse model, by its name there.
    norms : mapping of str to mapping
        For the norm of every site, by its name in the model: ``rms``, whether it is an RMSNorm
        rather than a LayerNorm, and ``epsilon``.
    tied : mapping of str to str
        By its name, a tensor that is another one too, and that one's name.
    selectors : Selectors

    Raises
    ------
    KeyError, AttributeError
        If the tensors are not those of this model.
    """
    adapter, left = adapter_for(model), dict(tensors)
    for index, layer in enumerate(adapter.decoder_layers(model)):
        prefix = f"{adapter.layers}.{index}."
        for site in adapter.sites:
            selector = selectors.selector(site.name, index)
            for name in site.readers:
                weight = left.pop(f"{prefix}{name}.weight")
                bias = left.pop(f"{prefix}{name}.bias", None)
                linear = SparseLinear(weight, bias, None if site.norm else selector)
                layer.set_submodule(name, linear)
            if site.norm is not None:
                place = f"{prefix}{site.norm}"
                weight, described = left.pop(f"{place}.norm.weight"), norms[place]
                norm = plain_norm(described["rms"], weight, described["epsilon"])
                transform = left.pop(f"{place}.transform", None)
                scale = left.pop(f"{place}.transform_scale", None)
                layer.set_submodule(site.norm, SparseNorm(norm, transform, scale, selector))
    selectors.follow(model)
    if any(name.rpartition(".")[2] == BASIS_CHANGE for name in left):
        refuse_hidden_states(adapter.decoder(model))
    for name, tensor in left.items():
        place, _, own = name.rpartition(".")
        if own == BASIS_CHANGE:
            change_basis(model.get_submodule(place), tensor)
        else:
            _fill(model.get_submodule(place), own, tensor)
    for name, first in tied.items():
        place, _, own = name.rpartition(".")
        setattr(model.get_submodule(place), own, model.get_parameter(first))
    if empty := [name for name, parameter in model.named_parameters() if parameter.is_meta]:
        raise KeyError(f"no {', '.join(empty)}")


def _fill(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Give a parameter or a buffer its content."""
    expected = getattr(module, name).shape
    if tensor.shape != expected:
        raise KeyError(f"{name} of shape {[*tensor.shape]} and not {[*expected]}")
    if name in dict(module.named_parameters(recurse=False)):
        setattr(module, name, nn.Parameter(tensor, requires_grad=False))
    else:
        setattr(module, name, tensor)
