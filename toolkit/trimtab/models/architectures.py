"""The module names of every supported architecture: the only place that knows them.

An adapter is data: a new architecture is one more `Adapter` in `ADAPTERS`. The sites follow
LaRoSA (arXiv 2507.01299, section 3): in every decoder layer the activations are read at four
places, h1 by the query, key and value projections, h2 by the attention's output projection,
h3 by the first half of the MLP and h4 by its second half.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel


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


def _nothing(config: PreTrainedConfig) -> Mapping[str, Any]:
    return {}


@dataclass(frozen=True)
class Adapter:
    """Where the parts of an architecture are, and what may be folded into them.

    Parameters
    ----------
    family : str
    layers, embeddings, final_norm, head : str
        Dotted names from the model's root.
    sites : tuple of Site
        h1 to h4.
    writers : tuple of str
        Names, within the decoder layer, of the linear layers whose outputs are added to the
        residual stream; nothing else is.
    values : str
        Name, within the decoder layer, of the linear layer whose last ``kv_heads * head_dim``
        outputs are the attention's values, KV head by KV head.
    up : str or None
        Name, within the decoder layer, of the linear layer whose last outputs, as many as h4 is
        wide, multiply the activated gate elementwise to make h4. None where the MLP has no gate.
    post_norms : bool
        True where the writers' outputs pass one more norm before they are added to the residual
        stream, so that a rotation of the stream cannot be folded into the writers.
    requires : callable
        Returns the values that settings of the config must have, by their names: with others
        the model has parts, or an order of them, that the rest does not describe.
    """

    family: str
    layers: str
    embeddings: str
    final_norm: str
    head: str
    sites: tuple[Site, ...]
    writers: tuple[str, ...]
    values: str
    up: str | None = None
    post_norms: bool = False
    requires: Callable[[PreTrainedConfig], Mapping[str, Any]] = _nothing

    def decoder_layers(self, model: PreTrainedModel) -> list[nn.Module]:
        """Return the decoder layers, first to last."""
        layers = model.get_submodule(self.layers)
        assert isinstance(layers, nn.ModuleList)
        return list(layers)

    def readers(self, layer: nn.Module, site: Site) -> list[nn.Module]:
        """Return the linear layers that read `site` in one decoder layer."""
        return [layer.get_submodule(name) for name in site.readers]


QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")

LLAMA = Adapter(
    family="llama",
    layers="model.layers",
    embeddings="model.embed_tokens",
    final_norm="model.norm",
    head="lm_head",
    sites=(
        Site("h1", QKV, norm="input_layernorm"),
        Site("h2", ("self_attn.o_proj",)),
        Site("h3", ("mlp.gate_proj", "mlp.up_proj"), norm="post_attention_layernorm"),
        Site("h4", ("mlp.down_proj",)),
    ),
    writers=("self_attn.o_proj", "mlp.down_proj"),
    values="self_attn.v_proj",
    up="mlp.up_proj",
)

GEMMA = replace(
    LLAMA,
    family="gemma",
    sites=(
        Site("h1", QKV, norm="input_layernorm"),
        Site("h2", ("self_attn.o_proj",)),
        Site("h3", ("mlp.gate_proj", "mlp.up_proj"), norm="pre_feedforward_layernorm"),
        Site("h4", ("mlp.down_proj",)),
    ),
    post_norms=True,
)

PHI3 = replace(
    LLAMA,
    family="phi3",
    sites=(
        Site("h1", ("self_attn.qkv_proj",), norm="input_layernorm"),
        Site("h2", ("self_attn.o_proj",)),
        Site("h3", ("mlp.gate_up_proj",), norm="post_attention_layernorm"),
        Site("h4", ("mlp.down_proj",)),
    ),
    values="self_attn.qkv_proj",
    up="mlp.gate_up_proj",
)

OPT = Adapter(
    family="opt",
    layers="model.decoder.layers",
    embeddings="model.decoder.embed_tokens",
    final_norm="model.decoder.final_layer_norm",
    head="lm_head",
    sites=(
        Site("h1", QKV, norm="self_attn_layer_norm"),
        Site("h2", ("self_attn.out_proj",)),
        Site("h3", ("fc1",), norm="final_layer_norm"),
        Site("h4", ("fc2",)),
    ),
    writers=("self_attn.out_proj", "fc2"),
    values="self_attn.v_proj",
    requires=lambda config: {
        "do_layer_norm_before": True,
        "word_embed_proj_dim": config.hidden_size,
        "layer_norm_elementwise_affine": True,
        "_remove_final_layer_norm": False,
    },
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
    writers=("attn.c_proj", "mlp.c_proj"),
    values="attn.c_attn",
)

ADAPTERS = {
    "GPT2LMHeadModel": GPT2,
    "Gemma2ForCausalLM": GEMMA,
    "Gemma3ForCausalLM": GEMMA,
    "LlamaForCausalLM": LLAMA,
    "MistralForCausalLM": LLAMA,
    "OPTForCausalLM": OPT,
    "Phi3ForCausalLM": PHI3,
    "Qwen2ForCausalLM": LLAMA,
    "Qwen3ForCausalLM": LLAMA,
}
