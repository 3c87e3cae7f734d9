"""What one decode step launches on a GPU, in order.

Nothing here looks at a number on the device, and all shapes follow from the plan and the number of
rows, so that the launches can be captured into a graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from trimtab_kernels.decode_attention.gpu import decode_attention
from trimtab_kernels.decode_step import triton_kernels
from trimtab_kernels.decode_step.gpu_inputs import OPTIONS, Stream, read_site, selection_of_made
from trimtab_kernels.decode_step.plan import DecodePlan, Embedding, Layer, Linear, SiteInput
from trimtab_kernels.sparse_linear.gpu import NOTHING, block_of, gather_gemv, gathered

BLOCK = 1024
BLOCK_OF_PARTS = 128  # where each entry is the sum of many


def decode_step(
    plan: DecodePlan,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    tokens: Tensor,
    slots: Tensor,
    positions: Tensor,
    logits: Tensor,
) -> None:
    """Do what `reference.decode_step` does, on the device of the plan.

    Parameters
    ----------
    plan, keys, values
        As for `reference.decode_step`.
    tokens, slots, positions : Tensor
        int64 of shape [rows] on the device. A row at a negative position is idle: it writes nothing
        into the cache, attends to nothing and is not counted; its logits mean nothing.
    logits : Tensor
        Of shape [rows, vocabulary] in the dtype of the model; filled.
    """
    lengths = (positions + 1).to(torch.int32)
    stream = Stream(_embedded(plan.embedding, tokens, positions))
    for layer, layer_keys, layer_values in zip(plan.layers, keys, values, strict=True):
        if layer.basis_change is not None:
            stream.change_basis(layer.basis_change)
        site = layer.attention_input
        made = _made(layer.projections, read_site(stream, site, positions), site)
        query = _placed(plan, layer, layer_keys, layer_values, made, slots, positions)
        site = layer.attention_output
        x = _attended(layer, layer_keys, layer_values, query, lengths, slots, site, positions)
        stream.add(_multiplied((layer.output,), x, site), layer.post_attention)
        site = layer.mlp_input
        made = _made(layer.mlp, read_site(stream, site, positions), site)
        site = layer.mlp_activation
        x = _activated(layer, made, site, positions)
        stream.add(_multiplied((layer.down,), x, site), layer.post_mlp)
    if plan.basis_change is not None:
        stream.change_basis(plan.basis_change)
    _multiply(plan.head, stream.read(plan.final_norm), logits)
    if plan.softcap is not None:
        logits.div_(plan.softcap).tanh_().mul_(plan.softcap)


def _embedded(embedding: Embedding, tokens: Tensor, positions: Tensor) -> Tensor:
    weight, learned = embedding.weight, embedding.positions
    rows, width = len(tokens), weight.shape[1]
    x = torch.empty((rows, width), dtype=weight.dtype, device=weight.device)
    scale = 1.0
    if embedding.scale is not None:
        scale = float(torch.tensor(embedding.scale, dtype=weight.dtype))  # on the host
    triton_kernels.embed_kernel[(rows, triton.cdiv(width, BLOCK))](
        tokens, positions, weight, learned, x, scale, embedding.position_offset, width,
        weight.stride(0), 0 if learned is None else learned.stride(0), scale != 1, BLOCK,
        **OPTIONS,
    )  # fmt: skip
    return x


class _Made(NamedTuple):
    """A product before its parts [parts, rows, columns] are added, and the bias to add."""

    parts: Tensor
    bias: Tensor | None = None


def _made(linears: Sequence[Linear], x: Tensor, site: SiteInput) -> _Made:
    """Return the outputs of the linear layers of a site, one after another."""
    if len(linears) == 1 and _gathers(linears[0], x, site):
        return _Made(gathered(x, linears[0].weight, 0.0), linears[0].bias)
    return _Made(_multiplied(linears, x, site)[None])


def _multiplied(linears: Sequence[Linear], x: Tensor, site: SiteInput) -> Tensor:
    """Return the outputs of the linear layers of a site, one after another."""
    sizes = [linear.weight.shape[1] for linear in linears]
    made = torch.empty((len(x), sum(sizes)), dtype=x.dtype, device=x.device)
    for linear, part in zip(linears, made.split(sizes, 1), strict=True):
        if _gathers(linear, x, site):
            gather_gemv(x, linear.weight, linear.bias, 0.0, out=part)
        else:
            _multiply(linear, x, part)
    return made


def _gathers(linear: Linear, x: Tensor, site: SiteInput) -> bool:
    """Return whether the product leaves weight rows unread."""
    return site.selection is not None and len(x) == 1 and linear.weight.stride(1) == 1


def _multiply(linear: Linear, x: Tensor, out: Tensor) -> None:
    if linear.bias is None:
        torch.mm(x, linear.weight, out=out)
    else:
        torch.addmm(linear.bias, x, linear.weight, out=out)


def _placed(
    plan: DecodePlan,
    layer: Layer,
    keys: Tensor,
    values: Tensor,
    made: _Made,
    slots: Tensor,
    positions: Tensor,
) -> Tensor:
    """Write keys and values into the cache, and return the queries [rows, heads, head_dim]."""
    (parts, rows, _), heads, width = made.parts.shape, plan.heads, plan.head_dim
    query = keys.new_empty((rows, heads, width))
    of_query, of_key, rotary = layer.query_norm, layer.key_norm, layer.rotary
    block = triton.next_power_of_2(width)
    triton_kernels.place_kernel[(rows, heads + 2 * plan.kv_heads)](
        made.parts, made.bias, query, keys, values, slots, positions, of_query and of_query.weight,
        of_query and of_query.bias, of_key and of_key.weight, of_key and of_key.bias,
        rotary and rotary.cos, rotary and rotary.sin, of_query.epsilon if of_query else 0.0,
        of_query.offset if of_query else 0.0, heads, plan.kv_heads, width,
        rotary.cos.shape[1] if rotary else 0, *keys.stride()[:3], *values.stride()[:3], parts,
        bool(of_query and of_query.centers), block_of(parts), block,
        num_warps=1 if parts == 1 else 4, **OPTIONS,
    )  # fmt: skip
    return query


def _attended(
    layer: Layer,
    keys: Tensor,
    values: Tensor,
    query: Tensor,
    lengths: Tensor,
    slots: Tensor,
    site: SiteInput,
    positions: Tensor,
) -> Tensor:
    """Return what the linear layer after the attention reads."""
    out = torch.empty_like(query)
    below = selection_of_made(site, out[0].numel(), positions)
    decode_attention(
        query, keys, values, lengths, layer.scale, layer.window, layer.softcap, out, slots,
        below or NOTHING,
    )  # fmt: skip
    x = out.flatten(1)
    return x if below is not None else read_site(Stream(x), site, positions)


def _activated(layer: Layer, made: _Made, site: SiteInput, positions: Tensor) -> Tensor:
    """Return what the last linear layer of an MLP reads."""
    (parts, rows, _), width = made.parts.shape, len(layer.down.weight)
    out = positions.new_empty((rows, width), dtype=layer.down.weight.dtype)
    below = selection_of_made(site, width, positions)
    dropped = below or NOTHING
    block = BLOCK if parts == 1 else BLOCK_OF_PARTS
    triton_kernels.activate_kernel[(rows, triton.cdiv(width, block))](
        *made, out, dropped.positions, dropped.counts, dropped.threshold, dropped.dense_prefix,
        width, parts, layer.activation.value, layer.gated, block_of(parts), block, **OPTIONS,
    )  # fmt: skip
    return out if below is not None else read_site(Stream(out), site, positions)
