"""From a live model to its parts, whose names are in `trimtab.models.architectures`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from trimtab.errors import MisfitError
from trimtab.models.architectures import ADAPTERS, Adapter
from trimtab.models.norms import centers, norm_bias, norm_epsilon, norm_weight
from trimtab.models.sites import Site

__all__ = [
    "ADAPTERS",
    "Adapter",
    "HeadShape",
    "Site",
    "adapter_for",
    "centers",
    "head_shape",
    "input_major",
    "input_width",
    "module_device",
    "norm_bias",
    "norm_epsilon",
    "norm_weight",
    "positions_of",
]


REQUIRED = {"is_causal": True, "return_dict": True}  # of every config that says anything of it


@dataclass(frozen=True)
class HeadShape:
    """How attention is divided into heads.

    Parameters
    ----------
    heads : int
        Query heads: the attention output is `heads` times `head_dim` wide.
    kv_heads : int
        Heads of keys and values. Query head i reads KV head ``i // (heads // kv_heads)``.
    head_dim : int
        Entries of one head.
    """

    heads: int
    kv_heads: int
    head_dim: int


def adapter_for(model: PreTrainedModel) -> Adapter:
    """Return the adapter of a model's architecture.

    Raises
    ------
    MisfitError
        If the architecture, or this variant of it, is not supported; the message lists what is.
    """
    name = type(model).__name__
    if name not in ADAPTERS:
        raise MisfitError(
            f"the architecture {name} is not supported; supported: {', '.join(ADAPTERS)}"
        )
    adapter = ADAPTERS[name]
    for setting, expected in {**REQUIRED, **adapter.requires(model.config)}.items():
        found = getattr(model.config, setting, expected)
        if found != expected:
            raise MisfitError(
                f"{name} with {setting}={found} is not supported, only with "
                f"{setting}={expected}: choose another model of the family"
            )
    window = getattr(model.config, "sliding_window", None)
    if window is not None and window < 2:  # of one, transformers' cache keeps all keys
        raise MisfitError(
            f"{name} with sliding_window={window} is not supported: expected at least 2, the token "
            "itself and one before it; choose another model of the family"
        )
    return adapter


def head_shape(config: Any) -> HeadShape:
    """Return how the attention of a model with this config is divided into heads."""
    heads = config.num_attention_heads
    return HeadShape(
        heads,
        getattr(config, "num_key_value_heads", None) or heads,
        getattr(config, "head_dim", None) or config.hidden_size // heads,
    )


def input_major(linear: nn.Module) -> Tensor:
    """Return the weight of a linear layer as a view of shape [inputs, outputs]."""
    weight = linear.weight
    assert isinstance(weight, Tensor)
    return weight if isinstance(linear, Conv1D) else weight.T


def input_width(linear: nn.Module) -> int:
    """Return how many entries a linear layer reads."""
    return input_major(linear).shape[0]


def module_device(module: nn.Module) -> torch.device:
    """Return the device of a module's first parameter."""
    return next(module.parameters()).device


def positions_of(model: PreTrainedModel, tokens: Tensor, first: int = 0) -> dict[str, Tensor]:
    """Return the argument that says where tokens [batch, length] are, for a model that needs it.

    OPT would count them in PyTorch's default dtype, which any thread may set to one that rounds.
    """
    if model.config.model_type != "opt":
        return {}
    places = torch.arange(first, first + tokens.shape[1], device=tokens.device)
    return {"position_ids": places[None]}
