"""The module names of every supported architecture: the only place that knows them.

An adapter is data: a new architecture is one more `Adapter` in `ADAPTERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from trimtab.errors import MisfitError
from trimtab.models.sites import Site, Sites

UNWRAP = "take off what wraps it first"


def _nothing(config: PreTrainedConfig) -> Mapping[str, Any]:
    return {}


def _every_layer(config: PreTrainedConfig, window: int | None) -> Mapping[str, Any]:
    """Return the settings with which transformers' caches have the window of the attention.

    Parameters
    ----------
    window : int or None
        Of the attention, in every layer, whatever the kinds of layers say.
    """
    kind = "full_attention" if window is None else "sliding_attention"
    kinds = getattr(config, "layer_types", None)
    return {
        "sliding_window": window,
        "attention_chunk_size": None,
        "layer_types": kinds and [kind] * config.num_hidden_layers,
    }


def _no_window(config: PreTrainedConfig) -> Mapping[str, Any]:
    return _every_layer(config, None)


def _one_window(config: PreTrainedConfig) -> Mapping[str, Any]:
    return _every_layer(config, getattr(config, "sliding_window", None))


def _window_by_layer(config: PreTrainedConfig) -> Mapping[str, Any]:
    found = getattr(config, "sliding_window", None) or "a number"
    kinds = getattr(config, "layer_types", None) or ()
    return {"sliding_window": found} if "sliding_attention" in kinds else {}


@dataclass(frozen=True)
class Adapter:
    """Where the parts of an architecture are, and what may be folded into them.

    Parameters
    ----------
    layers, final_norm : str
        Dotted names from the model's root.
    sites : Sites
        What the linear layers of a decoder layer read.
    writers : tuple of str
        Names, within the decoder layer, of the linear layers whose outputs are added to the
        residual stream. Nothing else is added to it.
    values : str
        Name, within the decoder layer, of the linear layer whose last ``kv_heads * head_dim``
        outputs are the attention's values, KV head by KV head.
    up : str or None
        Name, within the decoder layer, of the linear layer whose last outputs, as many as the MLP
        activation is wide, multiply the activated gate elementwise. None where the MLP has no gate.
    activation : str
        Name, within the decoder layer, of the module that applies the MLP's activation function.
    post_norms : tuple of str or None
        Names, within the decoder layer, of the norms that the outputs of attention and MLP pass
        before they are added to the residual stream, so that a rotation of the stream cannot be
        folded into the writers. None where there are none.
    head_norms : tuple of str or None
        Names, within the decoder layer, of the norms of every query and key head.
    positions : str or None
        Dotted name, from the model's root, of the embeddings of positions.
    scales_queries : bool
        True where the queries are multiplied by the attention module's ``scaling`` before the
        attention function gets them.
    requires : callable
        Returns the values that settings of the config must have, by their names. With others the
        model has parts, or an order of parts, that the adapter does not describe, or its caches a
        window that its attention does not have.
    """

    layers: str
    final_norm: str
    sites: Sites
    writers: tuple[str, ...]
    values: str
    activation: str
    up: str | None = None
    post_norms: tuple[str, str] | None = None
    head_norms: tuple[str, str] | None = None
    positions: str | None = None
    scales_queries: bool = False
    requires: Callable[[PreTrainedConfig], Mapping[str, Any]] = _nothing

    def decoder(self, model: PreTrainedModel) -> nn.Module:
        """Return the module that holds the decoder layers.

        Every forward pass calls it with the pass' tokens and cache. The base model is not always
        called: OPT's head calls the decoder inside it.
        """
        return model.get_submodule(self.layers.rpartition(".")[0])

    def decoder_layers(self, model: PreTrainedModel) -> list[nn.Module]:
        """Return the decoder layers, first to last.

        Raises
        ------
        MisfitError
            If they are not where transformers has them.
        """
        try:
            layers = model.get_submodule(self.layers)
        except AttributeError as error:
            raise MisfitError(f"{self.layers} is not there ({error}): {UNWRAP}") from error
        if not isinstance(layers, nn.ModuleList):
            found = type(layers).__name__
            raise MisfitError(f"{self.layers} is a {found}, and no nn.ModuleList: {UNWRAP}")
        return list(layers)

    @property
    def attention(self) -> str:
        """Name, within the decoder layer, of the attention module."""
        return self.sites.attention_output.readers[0].rpartition(".")[0]

    def readers(self, layer: nn.Module, site: Site) -> list[nn.Module]:
        """Return the linear layers that read `site` in one decoder layer."""
        return [layer.get_submodule(name) for name in site.readers]


QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")

LLAMA = Adapter(
    layers="model.layers",
    final_norm="model.norm",
    sites=Sites.of(
        attention_norm="input_layernorm",
        projections=QKV,
        output="self_attn.o_proj",
        mlp_norm="post_attention_layernorm",
        mlp=("mlp.gate_proj", "mlp.up_proj"),
        down="mlp.down_proj",
    ),
    writers=("self_attn.o_proj", "mlp.down_proj"),
    values="self_attn.v_proj",
    activation="mlp.act_fn",
    up="mlp.up_proj",
    requires=_no_window,
)

MISTRAL = replace(LLAMA, requires=_one_window)

QWEN2 = replace(LLAMA, requires=_window_by_layer)

QWEN3 = replace(QWEN2, head_norms=("self_attn.q_norm", "self_attn.k_norm"))

GEMMA = replace(
    QWEN2,
    sites=LLAMA.sites._replace(
        mlp_input=replace(LLAMA.sites.mlp_input, norm="pre_feedforward_layernorm")
    ),
    post_norms=("post_attention_layernorm", "post_feedforward_layernorm"),
)

GEMMA3 = replace(GEMMA, head_norms=QWEN3.head_norms)

PHI3 = replace(
    MISTRAL,
    sites=LLAMA.sites._replace(
        attention_input=replace(LLAMA.sites.attention_input, readers=("self_attn.qkv_proj",)),
        mlp_input=replace(LLAMA.sites.mlp_input, readers=("mlp.gate_up_proj",)),
    ),
    values="self_attn.qkv_proj",
    activation="mlp.activation_fn",
    up="mlp.gate_up_proj",
)

OPT = Adapter(
    layers="model.decoder.layers",
    final_norm="model.decoder.final_layer_norm",
    sites=Sites.of(
        attention_norm="self_attn_layer_norm",
        projections=QKV,
        output="self_attn.out_proj",
        mlp_norm="final_layer_norm",
        mlp=("fc1",),
        down="fc2",
    ),
    writers=("self_attn.out_proj", "fc2"),
    values="self_attn.v_proj",
    activation="activation_fn",
    positions="model.decoder.embed_positions",
    scales_queries=True,
    requires=lambda config: {
        **_no_window(config),
        "do_layer_norm_before": True,
        "word_embed_proj_dim": config.hidden_size,
        "layer_norm_elementwise_affine": True,
        "_remove_final_layer_norm": False,
    },
)

GPT2 = Adapter(
    layers="transformer.h",
    final_norm="transformer.ln_f",
    sites=Sites.of(
        attention_norm="ln_1",
        projections=("attn.c_attn",),
        output="attn.c_proj",
        mlp_norm="ln_2",
        mlp=("mlp.c_fc",),
        down="mlp.c_proj",
    ),
    writers=("attn.c_proj", "mlp.c_proj"),
    values="attn.c_attn",
    activation="mlp.act",
    positions="transformer.wpe",
    requires=_no_window,
)

ADAPTERS = {
    "GPT2LMHeadModel": GPT2,
    "Gemma2ForCausalLM": GEMMA,
    "Gemma3ForCausalLM": GEMMA3,
    "LlamaForCausalLM": LLAMA,
    "MistralForCausalLM": MISTRAL,
    "OPTForCausalLM": OPT,
    "Phi3ForCausalLM": PHI3,
    "Qwen2ForCausalLM": QWEN2,
    "Qwen3ForCausalLM": QWEN3,
}
