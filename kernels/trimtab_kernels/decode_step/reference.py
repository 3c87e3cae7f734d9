"""The meaning of a decode plan, in plain PyTorch, in the dtype of the model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from trimtab_kernels import reference
from trimtab_kernels.decode_step.plan import (
    Activation,
    DecodePlan,
    Embedding,
    Layer,
    Linear,
    Norm,
    Rotary,
    SiteInput,
)


def decode_step(
    plan: DecodePlan,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    tokens: Tensor,
    slots: Tensor,
    positions: Tensor,
) -> Tensor:
    """Write the keys and values of some tokens into the cache, and return the logits after each.

    Parameters
    ----------
    plan : DecodePlan
    keys, values : sequence of Tensor
        By layer, of shape [slots, max_len, kv_heads, head_dim]. All positions of a slot before its
        rows must be filled.
    tokens, slots, positions : Tensor
        int64 of shape [rows]: the token, and where in the cache it is. Every row attends to its
        slot up to its own position, rows of the same slot included.

    Returns
    -------
    Tensor
        Of shape [rows, vocabulary], in the dtype of the model.
    """
    x = _embed(plan.embedding, tokens, positions)
    for layer, layer_keys, layer_values in zip(plan.layers, keys, values, strict=True):
        if layer.basis_change is not None:
            x = x @ layer.basis_change
        mixed = _attention(plan, layer, layer_keys, layer_values, x, slots, positions)
        x = x + (mixed if layer.post_attention is None else normalized(layer.post_attention, mixed))
        added = _mlp(layer, x, positions)
        x = x + (added if layer.post_mlp is None else normalized(layer.post_mlp, added))
    if plan.basis_change is not None:
        x = x @ plan.basis_change
    logits = _multiplied((plan.head,), normalized(plan.final_norm, x))
    return logits if plan.softcap is None else plan.softcap * torch.tanh(logits / plan.softcap)


def normalized(norm: Norm, x: Tensor) -> Tensor:
    """Apply a norm to `x`, of shape [..., width], in float32 or wider."""
    wide = x if x.dtype == torch.float64 else x.float()
    if norm.centers:
        wide = wide - wide.mean(-1, keepdim=True)
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + norm.epsilon)
    wide = wide * (norm.weight.to(wide) + norm.offset)
    return (wide if norm.bias is None else wide + norm.bias.to(wide)).to(x.dtype)


def selected(site: SiteInput, x: Tensor, positions: Tensor) -> Tensor:
    """Return what the linear layers of a site read, for `x` of shape [rows, d]."""
    if site.norm is not None:
        x = normalized(site.norm, x)
    if site.transform is not None:
        if site.transform_scale is None:
            x = x @ site.transform
        else:
            x = reference.int8_linear(x, site.transform, site.transform_scale)
    if site.selection is None:
        return x
    kept = reference.keep_above(x, site.selection.threshold, site.selection.keep)
    found = torch.where((positions < site.selection.dense_prefix)[:, None], x, kept)
    if site.selection.counts is not None:
        left = found.count_nonzero()
        site.selection.counts.add_(torch.stack([left, torch.full_like(left, found.numel())]))
    return found


def activated(kind: Activation, x: Tensor) -> Tensor:
    """Apply an activation function elementwise."""
    if kind is Activation.silu:
        return functional.silu(x)
    if kind is Activation.relu:
        return functional.relu(x)
    return functional.gelu(x, approximate="tanh" if kind is Activation.gelu_tanh else "none")


def rotated(rotary: Rotary, x: Tensor, positions: Tensor) -> Tensor:
    """Rotate heads of shape [rows, heads, head_dim] to their positions."""
    cos, sin = (table[positions][:, None] for table in (rotary.cos, rotary.sin))
    turned, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    first, second = turned.chunk(2, dim=-1)
    return torch.cat([turned * cos + torch.cat([-second, first], -1) * sin, rest], -1)


def _embed(embedding: Embedding, tokens: Tensor, positions: Tensor) -> Tensor:
    x = embedding.weight[tokens]
    if embedding.scale is not None:
        x = x * torch.tensor(embedding.scale, dtype=x.dtype, device=x.device)
    if embedding.positions is not None:
        x = x + embedding.positions[positions + embedding.position_offset]
    return x


def _multiplied(linears: Sequence[Linear], x: Tensor) -> Tensor:
    outputs = [
        x @ linear.weight if linear.bias is None else x @ linear.weight + linear.bias
        for linear in linears
    ]
    return torch.cat(outputs, dim=-1)


def _attention(
    plan: DecodePlan,
    layer: Layer,
    keys: Tensor,
    values: Tensor,
    x: Tensor,
    slots: Tensor,
    positions: Tensor,
) -> Tensor:
    made = _multiplied(layer.projections, selected(layer.attention_input, x, positions))
    sizes = [plan.heads, plan.kv_heads, plan.kv_heads]
    query, key, value = made.unflatten(-1, (sum(sizes), plan.head_dim)).split(sizes, dim=1)
    if layer.query_norm is not None and layer.key_norm is not None:
        query, key = normalized(layer.query_norm, query), normalized(layer.key_norm, key)
    if layer.rotary is not None:
        query, key = (rotated(layer.rotary, part, positions) for part in (query, key))
    keys[slots, positions], values[slots, positions] = key, value
    mixed = [
        reference.decode_attention(
            query[row : row + 1], keys[slot : slot + 1], values[slot : slot + 1],
            positions[row : row + 1] + 1, layer.scale, layer.window, layer.softcap,
        )
        for row, slot in enumerate(slots.tolist())
    ]  # fmt: skip
    return _multiplied(
        (layer.output,), selected(layer.attention_output, torch.cat(mixed).flatten(1), positions)
    )


def _mlp(layer: Layer, x: Tensor, positions: Tensor) -> Tensor:
    made = _multiplied(layer.mlp, selected(layer.mlp_input, x, positions))
    if layer.gated:
        gate, up = made.chunk(2, dim=-1)
        hidden = activated(layer.activation, gate) * up
    else:
        hidden = activated(layer.activation, made)
    return _multiplied((layer.down,), selected(layer.mlp_activation, hidden, positions))
