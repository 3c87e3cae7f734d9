"""The operators: schemas, shape functions and public functions."""

from __future__ import annotations

import torch
from torch import Tensor

from trimtab_kernels.gradients import refuse_gradients, register_refusals
from trimtab_kernels.sparse_linear import cpu, dispatch
from trimtab_kernels.sparse_linear.checks import check_above, check_int8, check_linear, check_topk

_LIBRARY = torch.library.Library("trimtab", "DEF")
for _schema in (
    "keep_topk(Tensor x, int keep) -> Tensor",
    "keep_above(Tensor x, float threshold, int? cap) -> Tensor",
    "sparse_linear(Tensor x, Tensor weight, Tensor? bias, float threshold) -> Tensor",
    "int8_linear(Tensor x, Tensor weight, Tensor scale) -> Tensor",
):
    _LIBRARY.define(_schema, tags=torch.Tag.pt2_compliant_tag)

_keep_topk = torch.ops.trimtab.keep_topk.default
_keep_above = torch.ops.trimtab.keep_above.default
_sparse_linear = torch.ops.trimtab.sparse_linear.default
_int8_linear = torch.ops.trimtab.int8_linear.default


def keep_topk(x: Tensor, keep: int) -> Tensor:
    """Zero all but the `keep` entries of largest magnitude along the last dimension.

    Exactly `keep` positions survive in every row. Among equal magnitudes, the lowest index wins.
    NaN counts as the largest.

    Parameters
    ----------
    x : Tensor
        float32, bfloat16, float16 or float64, of shape [..., d].
    keep : int
        Between 0 and d.

    Returns
    -------
    Tensor
        Of the shape and dtype of `x`; `x` itself if `keep` is d.

    Raises
    ------
    ValueError
        If `keep` is outside [0, d], or `x` is of another dtype.
    NotImplementedError
        If gradients are to be taken: there is no derivative.
    """
    if x.dim() and keep == x.shape[-1]:
        return x
    refuse_gradients("keep_topk", x)
    return _keep_topk(x, keep)


def keep_above(x: Tensor, threshold: float, cap: int | None = None) -> Tensor:
    """Zero the entries whose magnitude is below `threshold` (TEAL, arXiv 2408.14690, eq. 2).

    Magnitudes are compared with the threshold in float32, or in float64 if `x` is. NaN stays.

    Parameters
    ----------
    x : Tensor
        float32, bfloat16, float16 or float64, of shape [..., d].
    threshold : float
        At least 0; 0 drops nothing.
    cap : int, optional
        At least 0. If more entries of a row reach the threshold, only the largest `cap` stay; among
        equal ones, those with the lowest indices.

    Returns
    -------
    Tensor
        New, of the shape and dtype of `x`.

    Raises
    ------
    ValueError
        If `threshold` or `cap` is negative, or `x` is of another dtype.
    NotImplementedError
        If gradients are to be taken: there is no derivative.
    """
    refuse_gradients("keep_above", x)
    return _keep_above(x, threshold, cap)


def sparse_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, threshold: float = 0.0
) -> Tensor:
    """Multiply `x`, with its small entries taken as zero, by an input-major weight.

    For one token, the C++ and Triton kernels never read the weight rows of entries that are zero or
    below `threshold`. For more tokens, and if `kernel_name` says "reference", the product may be a
    dense one on the masked input. Then a weight that is not finite reaches the result even if its
    entry was dropped. Sums are in float32, or in float64 for float64. The same input always yields
    the same bits on a device with the same number of threads.

    Parameters
    ----------
    x : Tensor
        float32, bfloat16, float16 or float64, of shape [..., d].
    weight : Tensor
        Of shape [d, n] and the dtype of `x`, with one contiguous row per entry of `x`: the
        transpose of torch.nn.Linear's weight.
    bias : Tensor, optional
        Of shape [n] and the dtype of `x`.
    threshold : float
        At least 0. If several products share an input, select once with `keep_topk` or
        `keep_above`, and leave this at 0.

    Returns
    -------
    Tensor
        Of shape [..., n] and the dtype of `x`.

    Raises
    ------
    ValueError
        If a shape, stride, dtype or device does not match, or `threshold` is negative.
    NotImplementedError
        If gradients are to be taken: there is no derivative.
    """
    refuse_gradients("sparse_linear", x, weight, bias)
    return _sparse_linear(x, weight, bias, threshold)


def int8_linear(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """Multiply `x` by an input-major int8 weight whose columns are scaled.

    For one token and for a few, the C++ and Triton kernels read the int8 weight directly. For more
    tokens it is first widened to the dtype of `x`.

    Parameters
    ----------
    x : Tensor
        float32, bfloat16, float16 or float64, of shape [..., d].
    weight : Tensor
        int8 of shape [d, n], with contiguous rows.
    scale : Tensor
        One factor per column, float32 of shape [n].

    Returns
    -------
    Tensor
        ``(x @ weight) * scale``, of shape [..., n] and the dtype of `x`; sums in float32 or wider.

    Raises
    ------
    ValueError
        If a shape, stride, dtype or device does not match.
    NotImplementedError
        If gradients are to be taken: there is no derivative.
    """
    refuse_gradients("int8_linear", x, scale)
    return _int8_linear(x, weight, scale)


def gather_tokens(x_device_type: str, dtype: torch.dtype) -> int:
    """Return for how many tokens at most `sparse_linear` leaves weight rows unread.

    That is 0 where `kernel_name` says "reference". On a CPU, this builds the C++ kernels if they
    have not been built yet.
    """
    if x_device_type == "cpu" and dtype in cpu.DTYPES:
        return cpu.gather_tokens(dtype)
    triton = x_device_type == "cuda" and dtype in dispatch.TRITON_DTYPES
    return dispatch.TRITON_TOKENS if triton else 0


def kernel_name(x_device_type: str, dtype: torch.dtype, tokens: int = 1) -> str:
    """Return the name of what `sparse_linear` runs for so many tokens on this type of device.

    On a CPU, this builds the C++ kernels if they have not been built yet.
    """
    if 0 < gather_tokens(x_device_type, dtype) < tokens:
        return f"dense masked product in PyTorch, {str(dtype).removeprefix('torch.')}"
    if x_device_type == "cpu" and dtype in cpu.DTYPES:
        return cpu.describe(dtype)
    kind = str(dtype).removeprefix("torch.")
    if x_device_type == "cuda" and dtype in dispatch.TRITON_DTYPES:
        return f"Triton split-K gather-GEMV, {kind}"
    return f"reference: dense masked product in PyTorch (no kernel for {kind} on {x_device_type})"


@torch.library.register_fake("trimtab::keep_topk", lib=_LIBRARY)
def _(x: Tensor, keep: int) -> Tensor:
    check_topk(x, keep)
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


@torch.library.register_fake("trimtab::keep_above", lib=_LIBRARY)
def _(x: Tensor, threshold: float, cap: int | None) -> Tensor:
    check_above(x, threshold, cap)
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


@torch.library.register_fake("trimtab::sparse_linear", lib=_LIBRARY)
def _(x: Tensor, weight: Tensor, bias: Tensor | None, threshold: float) -> Tensor:
    check_linear(x, weight, bias, threshold)
    return torch.empty((*x.shape[:-1], weight.shape[1]), dtype=x.dtype, device=x.device)


@torch.library.register_fake("trimtab::int8_linear", lib=_LIBRARY)
def _(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    check_int8(x, weight, scale)
    return torch.empty((*x.shape[:-1], weight.shape[1]), dtype=x.dtype, device=x.device)


dispatch.register(_LIBRARY)
register_refusals(_LIBRARY, "keep_topk", "keep_above", "sparse_linear", "int8_linear")
