"""What the linear layers of a decode step read on a GPU: norms, transforms and selections."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from trimtab_kernels.decode_step import triton_kernels
from trimtab_kernels.decode_step.plan import Norm, Selection, SiteInput
from trimtab_kernels.sparse_linear.gpu import NOTHING, Below, int8_linear, key_of, select

# Triton 3.9 warns unless this is set, since 3.10 changes its default.
OPTIONS = {"enable_fp_fusion": True}


class Stream:
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

    def read(
        self,
        norm: Norm | None,
        selection: Selection | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Return what a norm makes of the stream, and a selection of that, until the next call."""
        out = self._x if norm is None else torch.empty_like(self._x)
        if norm is not None or self._added is not None:
            _launch_norm(self._x, self._added, self._post, norm, out, selection, positions)
        self._added = self._post = None
        return out

    def change_basis(self, matrix: Tensor) -> None:
        """Multiply the stream by a matrix [d, d]."""
        self._x = self.read(None) @ matrix


def _launch_norm(
    x: Tensor,
    added: Tensor | None,
    post: Norm | None,
    norm: Norm | None,
    out: Tensor,
    selection: Selection | None,
    positions: Tensor | None,
) -> None:
    rows, width = x.shape
    block = triton.next_power_of_2(width)
    triton_kernels.norm_kernel[(rows,)](
        x, added, post and post.weight, post and post.bias, norm and norm.weight,
        norm and norm.bias, out, post.epsilon if post else 0.0, post.offset if post else 0.0,
        norm.epsilon if norm else 0.0, norm.offset if norm else 0.0, width,
        positions if selection else None, selection and selection.counts,
        selection.threshold if selection else 0.0, selection.keep if selection else 0,
        selection.dense_prefix if selection else 0, bool(post and post.centers),
        bool(norm and norm.centers), *key_of(x.dtype), block,
        num_warps=max(1, min(16, block // 256)), **OPTIONS,
    )  # fmt: skip


def read_site(stream: Stream, site: SiteInput, positions: Tensor) -> Tensor:
    """Return what the linear layers of a site read."""
    if site.norm is not None and site.transform is None:
        return stream.read(site.norm, site.selection, positions)
    return _selected(site, stream.read(site.norm), positions)


def _selected(site: SiteInput, x: Tensor, positions: Tensor) -> Tensor:
    """Return what the linear layers of a site read, for `x` after its norm."""
    matrix, scale, selection = site.transform, site.transform_scale, site.selection
    if matrix is not None and scale is not None:
        below = _below(selection, matrix.shape[1], positions)
        x = int8_linear(x, matrix, scale, below or NOTHING)
        if below is not None:
            return x
    elif matrix is not None:
        x = x @ matrix
    if selection is None:
        return x
    return select(
        x, min(selection.keep, x.shape[1]), selection.threshold, positions,
        selection.dense_prefix, selection.counts,
    )  # fmt: skip


def selection_of_made(site: SiteInput, width: int, positions: Tensor) -> Below | None:
    """Return what to drop of `width` entries where they are made, if that is all a site does."""
    if site.norm is not None or site.transform is not None:
        return None
    return _below(site.selection, width, positions)


def _below(chosen: Selection | None, width: int, positions: Tensor) -> Below | None:
    """Return a selection that can be made of an entry without the rest of its row."""
    if chosen is None or chosen.keep < width:
        return None
    return Below(positions, chosen.threshold, chosen.dense_prefix, chosen.counts)
