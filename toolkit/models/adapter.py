"""The only place that knows the module names of an architecture.

An adapter is data: a new architecture is one more `Adapter` in `ADAPTERS`. The sites follow
LaRoSA (arXiv 2507.01299, section 3): in every decoder layer the activations are read at four
places, h1 by the query, key and value projections, h2 by the attention's output projection,
h3 by the first half of the MLP and h4 by its second half.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from toolkit.errors import MisfitError


@dataclass(frozen=True)
class Site:
    """Activations that some linear layers of a decoder layer read.

    Parameters
    ----------
    name : str
        ``h1`` to ``h4``.
    readers : tuple of str
        Names, within the decoder layer, of every linear layer that reads the activations.
    norm : str or None
        Name of the norm whose output the activations are, where nothing but `readers` reads
        it: there a transform can be put between the two. None for h2 and h4.
    """

    name: str
    readers: tuple[str, ...]
    norm: str | None = None


@dataclass(frozen=True)
class Adapter:
    """Where the parts of an architecture are, as dotted names from the model's root."""

    family: str
    layers: str
    embeddings: str
    final_norm: str
    head: str
    sites: tuple[Site, ...]

    def decoder_layers(self, model: PreTrainedModel) -> list[nn.Module]:
        """Return the decoder layers, first to last."""
        layers = model.get_submodule(self.layers)
        assert isinstance(layers, nn.ModuleList)
        return list(layers)

    def readers(self, layer: nn.Module, site: Site) -> list[nn.Module]:
        """Return the linear layers that read `site` in one decoder layer."""
        return [layer.get_submodule(name) for name in site.readers]


def input_major(linear: nn.Module) -> Tensor:
    """Return the weight of a linear layer as a view of shape [inputs, outputs]."""
    weight = linear.weight
    assert isinstance(weight, Tensor)
    return weight if isinstance(linear, Conv1D) else weight.T


def set_input_major(linear: nn.Module, weight: Tensor) -> None:
    """Give a linear layer a new weight parameter, from a tensor of shape [inputs, outputs]."""
    stored = weight if isinstance(linear, Conv1D) else weight.T
    linear.weight = nn.Parameter(stored.contiguous(), requires_grad=False)


def input_width(linear: nn.Module) -> int:
    return input_major(linear).shape[0]


LLAMA = Adapter(
    family="llama",
    layers="model.layers",
    embeddings="model.embed_tokens",
    final_norm="model.norm",
    head="lm_head",
    sites=(
        Site(
            "h1",
            ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            norm="input_layernorm",
        ),
        Site("h2", ("self_attn.o_proj",)),
        Site("h3", ("mlp.gate_proj", "mlp.up_proj"), norm="post_attention_layernorm"),
        Site("h4", ("mlp.down_proj",)),
    ),
)

GPT2 = Adapter(
    family="gpt2",
    layers="transformer.h",
    embeddings="transformer.wte",
    final_norm="transformer.ln_f",
    head="lm_head",
    sites=(
        Site("h1", ("attn.c_attn",), norm="ln_1"),
        Site("h2", ("attn.c_proj",)),
        Site("h3", ("mlp.c_fc",), norm="ln_2"),
        Site("h4", ("mlp.c_proj",)),
    ),
)

ADAPTERS = {
    "GPT2LMHeadModel": GPT2,
    "LlamaForCausalLM": LLAMA,
    "MistralForCausalLM": LLAMA,
    "Qwen2ForCausalLM": LLAMA,
    "Qwen3ForCausalLM": LLAMA,
}


def adapter_for(model: PreTrainedModel) -> Adapter:
    """Return the adapter of a model's architecture.

    Raises
    ------
    MisfitError
        If the architecture is not supported; the message lists those that are.
    """
    name = type(model).__name__
    if name not in ADAPTERS:
        raise MisfitError(
            f"the architecture {name} is not supported; supported: {', '.join(ADAPTERS)}"
        )
    return ADAPTERS[name]


def module_device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device
