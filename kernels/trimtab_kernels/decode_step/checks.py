"""What the executor on a GPU requires of a plan, of a cache, and of the rows of a step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trimtab_kernels.decode_step.description import described, described_whole
from trimtab_kernels.decode_step.plan import DecodePlan, Layer, SiteInput
from trimtab_kernels.sparse_linear.gpu import MAX_WIDTH

TABLES = ("embedding.weight", "embedding.positions", "rotary.cos", "rotary.sin")


def check_plan(plan: DecodePlan, keys: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Refuse what the kernels could not read where it is.

    Raises
    ------
    ValueError
        If a dtype, a device, a shape or a stride does not fit; the message says which.
    """
    like = plan.embedding.weight
    _check_tensors(described_whole(plan)[0], like)
    for layer, layer_keys, layer_values in zip(plan.layers, keys, values, strict=True):
        _check_tensors(described(layer)[0], like)
        _check_layer(plan, layer)
        for cache in (layer_keys, layer_values):
            if (
                cache.dtype != like.dtype
                or cache.dim() != 4
                or cache.shape != keys[0].shape
                or cache.stride(3) != 1
            ):
                raise ValueError(
                    f"the cache is {cache.dtype} of shape {list(cache.shape)}; expected "
                    f"{like.dtype} [slots, max_len, kv_heads, head_dim]"
                )
    max_len, learned = keys[0].shape[1], plan.embedding.positions
    needed = max_len + plan.embedding.position_offset
    if learned is not None and len(learned) < needed:
        raise ValueError(
            f"the embeddings of positions are {len(learned)}; expected {needed} for a cache of "
            f"{max_len} tokens"
        )
    for rotary in {id(one): one for layer in plan.layers if (one := layer.rotary)}.values():
        if len(rotary.cos) < max_len or rotary.cos.shape != rotary.sin.shape:
            raise ValueError(
                f"the rotations are of {len(rotary.cos)} positions; expected {max_len}"
            )


def check_rows(
    plan: DecodePlan, cache: Tensor, most: int, tokens: Tensor, slots: Tensor, positions: Tensor
) -> Tensor:
    """Return the rows of a step, int64 of shape [3, rows], if they are in the model and the cache.

    Parameters
    ----------
    plan : DecodePlan
    cache : Tensor
        The keys or values of a layer.
    most : int
        The most rows of a step.
    tokens, slots, positions : Tensor
        As for `reference.decode_step`, on the host.
    """
    for name, one in (("tokens", tokens), ("slots", slots), ("positions", positions)):
        if one.dtype != torch.int64 or one.dim() != 1 or one.is_cuda or len(one) != len(tokens):
            raise ValueError(
                f"{name} is {one.dtype} of shape {list(one.shape)} on {one.device.type}; expected "
                "torch.int64 of one dimension on the host, as long as tokens"
            )
    if not 0 < len(tokens) <= most:
        raise ValueError(f"{len(tokens)} tokens; expected 1 to {most}")
    vocabulary, (size, max_len) = len(plan.embedding.weight), cache.shape[:2]
    rows = torch.stack([tokens, slots, positions])
    for token, slot, position in rows.T.tolist():
        if not 0 <= token < vocabulary:
            raise ValueError(f"token {token}; expected 0 to {vocabulary - 1}")
        if not (0 <= slot < size and 0 <= position < max_len):
            raise ValueError(
                f"position {position} of slot {slot} is outside a cache of shape "
                f"{list(cache.shape)}"
            )
    return rows


def _check_layer(plan: DecodePlan, layer: Layer) -> None:
    kinds = {
        norm and (norm.epsilon, norm.offset, norm.centers, norm.bias is None)
        for norm in (layer.query_norm, layer.key_norm)
    }
    if len(kinds) > 1:
        raise ValueError("the norms of queries and keys are of different kinds")
    widths = (
        (layer.attention_input, len(plan.embedding.weight[0])),
        (layer.attention_output, plan.heads * plan.head_dim),
        (layer.mlp_input, len(plan.embedding.weight[0])),
        (layer.mlp_activation, len(layer.down.weight)),
    )
    for site, width in widths:
        _check_site(site, width)


def _check_site(site: SiteInput, width: int) -> None:
    if site.selection is not None and width > MAX_WIDTH:
        raise ValueError(f"{width} activations to select from; expected at most {MAX_WIDTH}")


def _check_tensors(tensors: dict[str, Tensor], like: Tensor) -> None:
    for name, tensor in tensors.items():
        table = name in TABLES
        expected = like.dtype
        if name.endswith("selection.counts"):
            expected = torch.int64
        elif name.endswith("transform.scale"):
            expected = torch.float32
        elif name.endswith("transform.weight") and name[: -len("weight")] + "scale" in tensors:
            expected, table = torch.int8, True
        if (tensor.dtype, tensor.device) != (expected, like.device):
            raise ValueError(
                f"{name} is {tensor.dtype} on {tensor.device}; expected {expected} on {like.device}"
            )
        strides = tensor.stride()[-1:] if table or tensor.dim() == 1 else tensor.stride()
        if tensor.numel() > 1 and 1 not in strides:
            raise ValueError(f"{name} has the strides {tensor.stride()}; expected one of 1")
