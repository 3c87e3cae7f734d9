"""The decode plan of a live model, with whatever methods have made of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from trimtab.errors import MisfitError
from trimtab.generation.steps import Step
from trimtab.models.adapter import Adapter, adapter_for, head_shape
from trimtab.models.decode_parts import (
    activation_part,
    basis_change,
    in_plan,
    joined,
    linear_part,
    norm_part,
    site_input,
)
from trimtab.models.facts import final_softcap
from trimtab.vattention.attention import AttentionSpec
from trimtab_kernels.decode_step import DecodePlan, Embedding, Layer, Norm, Rotary


def decode_plan(model: PreTrainedModel, observed: Observed, max_len: int) -> DecodePlan:
    """Return the plan of one decode step; it refers to the model's own tensors.

    The model is to be checked by `trimtab.models.decode_parts.require_known_code` first.

    Parameters
    ----------
    model : PreTrainedModel
    observed : Observed
        A forward pass of this model, for what modules do not say of themselves: how a layer
        attends, and its rotations.
    max_len : int
        Positions to prepare rotations for.

    Raises
    ------
    MisfitError
        If the model does something that a plan cannot say; the message says what.
    """
    adapter, heads = adapter_for(model), head_shape(model.config)
    layers = adapter.decoder_layers(model)
    if list(observed.attention) != list(range(len(layers))):
        raise MisfitError(f"the layers run in the order {list(observed.attention)}")
    rotations = {id(found): observed.rotary(found, max_len) for found in observed.rotations}
    try:
        made = [
            _layer(adapter, layer, observed.attention[index], rotations[id(taken)])
            for index, (layer, taken) in enumerate(zip(layers, observed.rotations, strict=True))
        ]
    except AttributeError as error:  # a name of the adapter leads to nothing
        raise MisfitError(f"the model has another structure: {error}") from error
    final = model.get_submodule(adapter.final_norm)
    return DecodePlan(
        heads=heads.heads,
        kv_heads=heads.kv_heads,
        head_dim=heads.head_dim,
        embedding=_embedding(model, adapter),
        layers=tuple(made),
        basis_change=basis_change(final),
        final_norm=norm_part(final),
        head=linear_part(cast(nn.Module, model.get_output_embeddings())),
        softcap=final_softcap(model.config),
    )


def _embedding(model: PreTrainedModel, adapter: Adapter) -> Embedding:
    tokens: Any = model.get_input_embeddings()
    scale = getattr(tokens, "embed_scale", None)
    scale = None if scale is None else float(scale)
    if adapter.positions is None:
        return Embedding(tokens.weight, scale)
    positions: Any = model.get_submodule(adapter.positions)
    return Embedding(tokens.weight, scale, positions.weight, getattr(positions, "offset", 0))


def _layer(
    adapter: Adapter,
    layer: nn.Module,
    attention: tuple[AttentionSpec, float],
    rotary: Rotary | None,
) -> Layer:
    part = layer.get_submodule

    def norms(names: tuple[str, str] | None) -> list[Norm | None]:
        return [None, None] if names is None else [norm_part(part(name)) for name in names]

    attention_input, attention_output, mlp_input, mlp_activation = adapter.sites
    spec, scaling = attention
    post_attention, post_mlp = norms(adapter.post_norms)
    query_norm, key_norm = norms(adapter.head_norms)
    return Layer(
        basis_change=basis_change(layer),
        attention_input=site_input(attention_input, layer),
        projections=joined([linear_part(part(name)) for name in attention_input.readers]),
        query_norm=query_norm,
        key_norm=key_norm,
        rotary=rotary,
        scale=spec.scale * (scaling if adapter.scales_queries else 1.0),
        window=spec.window,
        softcap=spec.softcap,
        attention_output=site_input(attention_output, layer),
        output=linear_part(part(attention_output.readers[0])),
        post_attention=post_attention,
        mlp_input=site_input(mlp_input, layer),
        mlp=joined([linear_part(part(name)) for name in mlp_input.readers]),
        gated=adapter.up is not None,
        activation=activation_part(part(adapter.activation)),
        mlp_activation=site_input(mlp_activation, layer),
        down=linear_part(part(mlp_activation.readers[0])),
        post_mlp=post_mlp,
    )


class Observed:
    """A step that notes what it sees, and leaves the work to another.

    Parameters
    ----------
    step : Step

    Attributes
    ----------
    attention : dict of int to (AttentionSpec, float)
        By layer, in the order of the pass: how it attends, and the attention module's own scale.
    rotations : list of object
        By layer, the rotations that it was given; None where there are none.
    """

    def __init__(self, step: Step) -> None:
        self._step, self.start, self.prompt = step, step.start, step.prompt
        self.attention: dict[int, tuple[AttentionSpec, float]] = {}
        self.rotations: list[object] = []
        self._calls: list[tuple[nn.Module, tuple[Any, ...], dict[str, Any], object]] = []

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, spec: AttentionSpec
    ) -> Tensor:
        """See `Step.attend`."""
        self.attention[cast(int, module.layer_idx)] = spec, cast(float, module.scaling)
        return self._step.attend(module, query, key, value, spec)

    @contextmanager
    def watching(self, model: PreTrainedModel) -> Iterator[None]:
        """Note which rotations a forward pass within the block makes, and who gets them."""

        @in_plan
        def made(module: nn.Module, args: Any, kwargs: dict[str, Any], output: object) -> None:
            self._calls.append((module, args, kwargs, output))

        @in_plan
        def taken(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            self.rotations.append(kwargs.get("position_embeddings"))

        adapter = adapter_for(model)
        with ExitStack() as hooks:
            for child in adapter.decoder(model).children():
                handle = child.register_forward_hook(made, with_kwargs=True)
                hooks.callback(handle.remove)
            for layer in adapter.decoder_layers(model):
                handle = layer.register_forward_pre_hook(taken, with_kwargs=True)
                hooks.callback(handle.remove)
            yield

    def rotary(self, taken: object, max_len: int) -> Rotary | None:
        """Return the rotations of `max_len` positions, of the kind that a layer was given.

        Raises
        ------
        MisfitError
            If it is not known where they come from.
        """
        if taken is None:
            return None
        for module, args, kwargs, output in self._calls:
            if output is taken:
                given = dict(zip(("x", "position_ids", "layer_type"), args, strict=False)) | kwargs
                positions = torch.arange(max_len, device=given["x"].device)[None]
                cos, sin = module(**{**given, "position_ids": positions})
                return Rotary(cos[0].contiguous(), sin[0].contiguous())
        raise MisfitError("where the rotations of positions come from is not known")
