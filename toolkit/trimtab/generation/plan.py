"""The decode plan of a live model, with whatever methods have made of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from trimtab.errors import MisfitError
from trimtab.models.adapter import Adapter, adapter_for, head_shape, module_device
from trimtab.models.decode_parts import (
    activation_part,
    basis_change,
    in_plan,
    linear_part,
    norm_part,
    require_known_code,
    site_input,
)
from trimtab.models.facts import final_softcap
from trimtab.vattention.attention import AttentionSpec
from trimtab_kernels.decode_step import DecodePlan, Embedding, Layer, Norm, Rotary


@torch.inference_mode()
def decode_plan(model: PreTrainedModel, max_len: int) -> DecodePlan:
    """Return the plan of one decode step; it refers to the model's own tensors.

    What modules do not say of themselves (how a layer attends, and its rotations) is observed in a
    forward pass of one token.

    Parameters
    ----------
    model : PreTrainedModel
        Set to use the engine's attention function.
    max_len : int
        Positions to prepare rotations for.

    Raises
    ------
    MisfitError
        If the model does something that a plan cannot say; the message says what.
    """
    require_known_code(model)
    adapter, heads = adapter_for(model), head_shape(model.config)
    observed = _observe(model, adapter)
    head = cast(nn.Module, model.get_output_embeddings())
    return DecodePlan(
        heads=heads.heads,
        kv_heads=heads.kv_heads,
        head_dim=heads.head_dim,
        embedding=_embedding(model, adapter),
        layers=tuple(
            _layer(adapter, layer, observed, index, max_len)
            for index, layer in enumerate(adapter.decoder_layers(model))
        ),
        basis_change=basis_change(model.get_submodule(adapter.final_norm)),
        final_norm=norm_part(model.get_submodule(adapter.final_norm)),
        head=linear_part(head),
        softcap=final_softcap(model.config),
    )


def _embedding(model: PreTrainedModel, adapter: Adapter) -> Embedding:
    tokens: Any = model.get_input_embeddings()
    scale = getattr(tokens, "scalar_embed_scale", None)
    if adapter.positions is None:
        return Embedding(tokens.weight, scale)
    positions: Any = model.get_submodule(adapter.positions)
    return Embedding(tokens.weight, scale, positions.weight, getattr(positions, "offset", 0))


def _layer(
    adapter: Adapter, layer: nn.Module, observed: _Observed, index: int, max_len: int
) -> Layer:
    part = layer.get_submodule

    def norms(names: tuple[str, str] | None) -> list[Norm | None]:
        return [None, None] if names is None else [norm_part(part(name)) for name in names]

    attention_input, attention_output, mlp_input, mlp_activation = adapter.sites
    spec, scaling = observed.attention[index]
    post_attention, post_mlp = norms(adapter.post_norms)
    query_norm, key_norm = norms(adapter.head_norms)
    return Layer(
        basis_change=basis_change(layer),
        attention_input=site_input(attention_input, layer),
        projections=tuple(linear_part(part(name)) for name in attention_input.readers),
        query_norm=query_norm,
        key_norm=key_norm,
        rotary=observed.rotary(index, max_len),
        scale=spec.scale * (scaling if adapter.scales_queries else 1.0),
        window=spec.window,
        softcap=spec.softcap,
        attention_output=site_input(attention_output, layer),
        output=linear_part(part(attention_output.readers[0])),
        post_attention=post_attention,
        mlp_input=site_input(mlp_input, layer),
        mlp=tuple(linear_part(part(name)) for name in mlp_input.readers),
        gated=adapter.up is not None,
        activation=activation_part(part(adapter.activation)),
        mlp_activation=site_input(mlp_activation, layer),
        down=linear_part(part(mlp_activation.readers[0])),
        post_mlp=post_mlp,
    )


class _Observed:
    """What a forward pass of one token shows.

    It is the pass' step, so that the engine's attention function calls it.

    Attributes
    ----------
    attention : dict of int to (AttentionSpec, float)
        By layer, how it attends, and the attention module's own scale.
    """

    start: int | None = None
    prompt = False

    def __init__(self) -> None:
        self.attention: dict[int, tuple[AttentionSpec, float]] = {}
        self._rotations: dict[int, object] = {}  # by layer
        self._calls: list[tuple[nn.Module, tuple[Any, ...], dict[str, Any], object]] = []

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, spec: AttentionSpec
    ) -> Tensor:
        index = cast(int, module.layer_idx)
        self.attention[index] = spec, cast(float, module.scaling)
        return query.transpose(1, 2)

    @contextmanager
    def watching(self, model: PreTrainedModel, adapter: Adapter) -> Iterator[None]:
        """Note which rotations a forward pass within the block makes, and who gets them."""

        @in_plan
        def made(module: nn.Module, args: Any, kwargs: dict[str, Any], output: object) -> None:
            self._calls.append((module, args, kwargs, output))

        layers = adapter.decoder_layers(model)
        with ExitStack() as hooks:
            for child in adapter.decoder(model).children():
                handle = child.register_forward_hook(made, with_kwargs=True)
                hooks.callback(handle.remove)
            for index, layer in enumerate(layers):

                @in_plan
                def taken(
                    module: nn.Module, args: Any, kwargs: dict[str, Any], index: int = index
                ) -> None:
                    self._rotations[index] = kwargs.get("position_embeddings")

                hooks.callback(layer.register_forward_pre_hook(taken, with_kwargs=True).remove)
            yield

    def rotary(self, index: int, max_len: int) -> Rotary | None:
        """Return the rotations of a layer for `max_len` positions, None where it has none."""
        found = self._rotations[index]
        if found is None:
            return None
        for module, args, kwargs, output in self._calls:
            if output is found:
                x = args[0] if args else kwargs["x"]
                positions = torch.arange(max_len, device=x.device)[None]
                given = dict(zip(("x", "position_ids", "layer_type"), args, strict=False)) | kwargs
                cos, sin = module(**{**given, "position_ids": positions})
                return Rotary(cos[0], sin[0])
        raise MisfitError("where the rotations of positions come from is not known")


def _observe(model: PreTrainedModel, adapter: Adapter) -> _Observed:
    observed, device = _Observed(), module_device(model.get_input_embeddings())
    with observed.watching(model, adapter):
        cast(Any, model)(
            input_ids=torch.zeros(1, 1, dtype=torch.int64, device=device),
            position_ids=torch.zeros(1, 1, dtype=torch.int64, device=device),
            attention_mask=torch.zeros(1, 1, 1, 1, dtype=torch.bool, device=device),
            use_cache=False,
            step=observed,
        )
    return observed
