"""What one decode step launches on a GPU, in order.

Nothing here looks at a number on the device, and all shapes follow from the plan and the number of
rows, so that the launches can be captured into a graph.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from trimtab_kernels.decode_attention.gpu import decode_attention
from trimtab_kernels.decode_step import triton_kernels
from trimtab_kernels.decode_step.plan import (
    DecodePlan,
    Embedding,
    Layer,
    Linear,
    Norm,
    SiteInput,
)
from trimtab_kernels.reference import int8_linear
from trimtab_kernels.sparse_linear.gpu import gather_gemv, select

BLOCK = 1024
# Triton 3.9 warns unless this is set, since 3.10 changes its default.
OPTIONS = {"enable_fp_fusion": True}


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
    stream = _Stream(_embedded(plan.embedding, tokens, positions))
    for layer, layer_keys, layer_values in zip(plan.layers, keys, values, strict=True):
        if layer.basis_change is not None:
            stream.change_basis(layer.basis_change)
        site = layer.attention_input
        x = _selected(site, stream.read(site.norm), positions)
        made = _multiplied(layer.projections, x, site)
        query = _placed(plan, layer, layer_keys, layer_values, made, slots, positions)
        mixed = torch.empty_like(query)
        decode_attention(
            query, layer_keys, layer_values, lengths, layer.scale, layer.window, layer.softcap,
            mixed, slots,
        )  # fmt: skip
        site = layer.attention_output
        x = _selected(site, _normalized(site.norm, mixed.flatten(1)), positions)
        stream.add(_multiplied((layer.output,), x, site), layer.post_attention)
        site = layer.mlp_input
        x = _selected(site, stream.read(site.norm), positions)
        hidden = _activated(layer, _multiplied(layer.mlp, x, site))
        site = layer.mlp_activation
        x = _selected(site, _normalized(site.norm, hidden), positions)
        stream.add(_multiplied((layer.down,), x, site), layer.post_mlp)
    if plan.basis_change is not None:
        stream.change_basis(plan.basis_change)
    _multiply(plan.head, stream.read(plan.final_norm), logits)
    if plan.softcap is not None:
        logits.div_(plan.softcap).tanh_().mul_(plan.softcap)


class _Stream:
    """The residual stream, and what is to be added to it when it is next read.

    So the sum and the norm that follows are one launch.
    """

    def __init__(self, x: Tensor) -> None:
        self._x = x
        self._added: Tensor | None = None
        self._post: Norm | None = None

    def add(self, added: Tensor, post: Norm | None) -> None:
        """Add what a norm makes of `added`, if there is one."""
        self._added, self._post = added, post

    def read(self, norm: Norm | None) -> Tensor:
        """Return what a norm makes of the stream, valid until the next call."""
        out = self._x if norm is None else torch.empty_like(self._x)
        if norm is not None or self._added is not None:
            _launch_norm(self._x, self._added, self._post, norm, out)
        self._added = self._post = None
        return out

    def change_basis(self, matrix: Tensor) -> None:
        self._x = self.read(None) @ matrix


def _launch_norm(
    x: Tensor, added: Tensor | None, post: Norm | None, norm: Norm | None, out: Tensor
) -> None:
    rows, width = x.shape
    block = triton.next_power_of_2(width)
    triton_kernels.norm_kernel[(rows,)](
        x, added, post and post.weight, post and post.bias, norm and norm.weight,
        norm and norm.bias, out, post.epsilon if post else 0.0, post.offset if post else 0.0,
        norm.epsilon if norm else 0.0, norm.offset if norm else 0.0, width,
        bool(post and post.centers), bool(norm and norm.centers), block,
        num_warps=max(1, min(16, block // 256)), **OPTIONS,
    )  # fmt: skip


def _normalized(norm: Norm | None, x: Tensor) -> Tensor:
    if norm is None:
        return x
    out = torch.empty_like(x)
    _launch_norm(x, None, None, norm, out)
    return out


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


def _selected(site: SiteInput, x: Tensor, positions: Tensor) -> Tensor:
    """Return what the linear layers of a site read, for `x` after its norm."""
    matrix, scale, selection = site.transform, site.transform_scale, site.selection
    if matrix is not None and scale is None:
        x = x @ matrix
    elif matrix is not None and scale is not None:
        one = len(x) == 1
        x = gather_gemv(x, matrix, None, 0.0, scale) if one else int8_linear(x, matrix, scale)
    if selection is None:
        return x
    return select(
        x, min(selection.keep, x.shape[1]), selection.threshold, positions,
        selection.dense_prefix, selection.counts,
    )  # fmt: skip


def _multiplied(linears: Sequence[Linear], x: Tensor, site: SiteInput) -> Tensor:
    """Return the outputs of the linear layers of a site, one after another."""
    sizes = [linear.weight.shape[1] for linear in linears]
    made = torch.empty((len(x), sum(sizes)), dtype=x.dtype, device=x.device)
    for linear, part in zip(linears, made.split(sizes, 1), strict=True):
        if site.selection is not None and len(x) == 1 and linear.weight.stride(1) == 1:
            gather_gemv(x, linear.weight, linear.bias, 0.0, out=part)
        else:
            _multiply(linear, x, part)
    return made


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
    made: Tensor,
    slots: Tensor,
    positions: Tensor,
) -> Tensor:
    """Write keys and values into the cache, and return the queries [rows, heads, head_dim]."""
    rows, heads, width = len(made), plan.heads, plan.head_dim
    query = torch.empty((rows, heads, width), dtype=made.dtype, device=made.device)
    of_query, of_key, rotary = layer.query_norm, layer.key_norm, layer.rotary
    block = triton.next_power_of_2(width)
    triton_kernels.place_kernel[(rows, heads + 2 * plan.kv_heads)](
        made, query, keys, values, slots, positions, of_query and of_query.weight,
        of_query and of_query.bias, of_key and of_key.weight, of_key and of_key.bias,
        rotary and rotary.cos, rotary and rotary.sin, of_query.epsilon if of_query else 0.0,
        of_query.offset if of_query else 0.0, heads, plan.kv_heads, width,
        rotary.cos.shape[1] if rotary else 0, *keys.stride()[:3], *values.stride()[:3],
        bool(of_query and of_query.centers), block, num_warps=1, **OPTIONS,
    )  # fmt: skip
    return query


def _activated(layer: Layer, made: Tensor) -> Tensor:
    rows, width = len(made), layer.down.weight.shape[0]
    out = torch.empty((rows, width), dtype=made.dtype, device=made.device)
    triton_kernels.activate_kernel[(rows, triton.cdiv(width, BLOCK))](
        made, out, width, layer.activation.value, layer.gated, BLOCK, **OPTIONS
    )
    return out
