"""The decode plan: one decode step of a model, as data.

It refers to the model's own tensors and copies none but the smallest (tables of rotations). Its
rows are pairs of a slot of the KV cache and a position in it: the newest token of every text in a
batch, the tokens of a draft to verify, or both at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from torch import Tensor


class Activation(StrEnum):
    """The elementwise function in the middle of an MLP."""

    silu = "silu"
    relu = "relu"
    gelu = "gelu"
    gelu_tanh = "gelu_tanh"


@dataclass(frozen=True)
class Norm:
    """``(weight + offset) * (x - mean) / sqrt(variance + epsilon) + bias`` over the last dimension.

    Parameters
    ----------
    weight : Tensor
        Of shape [width].
    bias : Tensor or None
        Of shape [width].
    epsilon : float
    centers : bool
        Whether the mean is subtracted (LayerNorm). If not, the mean square takes the place of the
        variance (RMSNorm).
    offset : float
        1 where the weight is stored as its difference from one.
    """

    weight: Tensor
    bias: Tensor | None
    epsilon: float
    centers: bool
    offset: float = 0.0


@dataclass(frozen=True)
class Selection:
    """Which activations of a token are kept (see `trimtab_kernels.sparse_linear.keep_above`).

    Parameters
    ----------
    keep : int
        The most entries that stay.
    threshold : float
        The magnitude below which none stays.
    dense_prefix : int
        Positions at the beginning of a text that drop nothing.
    counts : Tensor, optional
        int64 of shape [2] on the plan's device: executors add to it how many entries were not zero
        after the selection, and how many there were.
    """

    keep: int
    threshold: float = 0.0
    dense_prefix: int = 0
    counts: Tensor | None = None


@dataclass(frozen=True)
class Linear:
    """A linear layer.

    Parameters
    ----------
    weight : Tensor
        A view of shape [inputs, outputs], in which one of the strides is 1.
    bias : Tensor or None
        Of shape [outputs].
    """

    weight: Tensor
    bias: Tensor | None = None


@dataclass(frozen=True)
class SiteInput:
    """What happens to activations before the linear layers of a site read them, in this order.

    Parameters
    ----------
    norm : Norm or None
    transform : Tensor or None
        Matrix of shape [d, d] that follows the norm, in the model's dtype or int8.
    transform_scale : Tensor or None
        With int8, what every column is multiplied by: float32 of shape [d].
    selection : Selection or None
        None if nothing is dropped.
    """

    norm: Norm | None = None
    transform: Tensor | None = None
    transform_scale: Tensor | None = None
    selection: Selection | None = None


@dataclass(frozen=True)
class Rotary:
    """Rotary position embedding: entry i of a head is paired with entry i + r / 2.

    Parameters
    ----------
    cos, sin : Tensor
        By position, of shape [positions, r] in the model's dtype, where r is at most the width of a
        head; entries from r on are left alone.
    """

    cos: Tensor
    sin: Tensor


@dataclass(frozen=True)
class Embedding:
    """From tokens to the residual stream.

    Parameters
    ----------
    weight : Tensor
        Of shape [vocabulary, d].
    scale : float or None
        What the rows are multiplied by, in the model's dtype.
    positions : Tensor or None
        Learned embeddings of positions, of shape [positions, d], which are added.
    position_offset : int
        Row of the first position.
    """

    weight: Tensor
    scale: float | None = None
    positions: Tensor | None = None
    position_offset: int = 0


@dataclass(frozen=True)
class Layer:
    """One decoder layer.

    Parameters
    ----------
    basis_change : Tensor or None
        Matrix of shape [d, d] that the residual stream is multiplied by first.
    attention_input : SiteInput
    projections : tuple of Linear
        Their outputs, one after another, are the queries, keys and values of all heads.
    query_norm, key_norm : Norm or None
        Over every head, before the rotation.
    rotary : Rotary or None
    scale : float
        Factor on the products of query and key.
    window : int or None
        The most tokens attended to, including the query's own.
    softcap : float or None
        Soft bound of the scores.
    attention_output : SiteInput
    output : Linear
    post_attention : Norm or None
        Before the output is added to the residual stream.
    mlp_input : SiteInput
    mlp : tuple of Linear
        Their outputs, one after another: if `gated`, the gate and then what it multiplies.
    gated : bool
    activation : Activation
    mlp_activation : SiteInput
    down : Linear
    post_mlp : Norm or None
    """

    basis_change: Tensor | None
    attention_input: SiteInput
    projections: tuple[Linear, ...]
    query_norm: Norm | None
    key_norm: Norm | None
    rotary: Rotary | None
    scale: float
    window: int | None
    softcap: float | None
    attention_output: SiteInput
    output: Linear
    post_attention: Norm | None
    mlp_input: SiteInput
    mlp: tuple[Linear, ...]
    gated: bool
    activation: Activation
    mlp_activation: SiteInput
    down: Linear
    post_mlp: Norm | None

    def __post_init__(self) -> None:
        object.__setattr__(self, "activation", Activation(self.activation))


@dataclass(frozen=True)
class DecodePlan:
    """A whole model.

    Parameters
    ----------
    heads, kv_heads, head_dim : int
        Query head i reads KV head ``i // (heads // kv_heads)``.
    embedding : Embedding
    layers : tuple of Layer
    basis_change : Tensor or None
        Before the final norm.
    final_norm : Norm
    head : Linear
    softcap : float or None
        Soft bound of the logits.
    """

    heads: int
    kv_heads: int
    head_dim: int
    embedding: Embedding
    layers: tuple[Layer, ...]
    basis_change: Tensor | None
    final_norm: Norm
    head: Linear
    softcap: float | None
