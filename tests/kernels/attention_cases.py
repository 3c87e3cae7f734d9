"""Caches for tests of decode attention: strided, and poisoned or inaccessible elsewhere."""

from __future__ import annotations

import ctypes
import mmap
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trimtab_kernels import reference

PROT_NONE = 0


@dataclass
class Case:
    """The arguments of `decode_attention`, under the same names."""

    query: Tensor
    keys: Tensor
    values: Tensor
    lengths: Tensor
    scale: float
    window: int | None = None
    softcap: float | None = None

    @property
    def arguments(self) -> tuple:
        return tuple(vars(self).values())

    def to(self, device: str) -> Case:
        """Return the case on a device, with the same strides and gaps in its caches."""
        moved = {k: v.to(device) for k, v in vars(self).items() if k in ("query", "lengths")}
        for name in ("keys", "values"):
            cache = getattr(self, name)
            whole = torch.empty(0, dtype=cache.dtype).set_(cache.untyped_storage()).to(device)
            moved[name] = whole.as_strided(cache.shape, cache.stride(), cache.storage_offset())
        return replace(self, **moved)

    def slot(self, slot: int) -> Case:
        """Return one slot as a case of its own, in the same memory."""
        one = slice(slot, slot + 1)
        names = ("query", "keys", "values", "lengths")
        return replace(self, **{name: getattr(self, name)[one] for name in names})


def attended(lengths: list[int], window: int | None) -> list[slice]:
    """Return the tokens of each slot that may be read."""
    return [slice(max(0, n - (window or n)), n) for n in lengths]


def draw(
    lengths: list[int],
    dtype: torch.dtype,
    group: int = 3,
    kv_heads: int = 2,
    width: int = 24,
    max_len: int | None = None,
    window: int | None = None,
    softcap: float | None = None,
    gaps: tuple[int, int, int] = (0, 0, 0),
    seed: int = 0,
) -> Case:
    """Return a case with NaN everywhere except in the tokens attended to.

    Parameters
    ----------
    gaps : tuple of int
        Elements between the heads of a token, between tokens, and between slots.
    """
    generator = torch.Generator().manual_seed(seed)
    slots, max_len = len(lengths), max(lengths) if max_len is None else max_len
    strides = [width + gaps[0]]
    strides.append(kv_heads * strides[0] + gaps[1])
    strides.append(max_len * strides[1] + gaps[2])
    caches = []
    for _ in range(2):
        memory = torch.full((slots * strides[2] + 1,), torch.nan, dtype=dtype)
        cache = memory[1:].as_strided(
            (slots, max_len, kv_heads, width), (strides[2], strides[1], strides[0], 1)
        )
        for slot, tokens in enumerate(attended(lengths, window)):
            live = cache[slot, tokens]
            live.copy_(torch.randn(live.shape, generator=generator))
        caches.append(cache)
    query = torch.randn(slots, group * kv_heads, width, generator=generator).to(dtype)
    counts = torch.tensor(lengths, dtype=torch.int32)
    return Case(query, *caches, counts, 1.3 * width**-0.5, window, softcap)


def guard(case: Case) -> Case:
    """Return the case with caches of which only the tokens attended to can be accessed.

    These must begin and end at page bounds in every slot.
    """
    moved = {}
    for name in ("keys", "values"):
        cache = getattr(case, name)
        assert cache.is_contiguous()
        memory = mmap.mmap(-1, cache.nbytes)
        copy = torch.frombuffer(memory, dtype=cache.dtype).view(cache.shape)
        copy.copy_(cache)
        size = cache.nbytes // len(cache)
        token = size // cache.shape[1]
        start = 0
        for slot, tokens in enumerate(attended(case.lengths.tolist(), case.window)):
            _forbid(copy, start, slot * size + tokens.start * token)
            start = slot * size + tokens.stop * token
        _forbid(copy, start, cache.nbytes)
        moved[name] = copy
    return replace(case, **moved)


def _forbid(tensor: Tensor, start: int, stop: int) -> None:
    assert start % mmap.PAGESIZE == stop % mmap.PAGESIZE == 0
    libc = ctypes.CDLL(None, use_errno=True)
    address = ctypes.c_void_p(tensor.data_ptr() + start)
    assert libc.mprotect(address, ctypes.c_size_t(stop - start), PROT_NONE) == 0


def expected(case: Case) -> Tensor:
    """Return the reference's result in float64."""
    query, keys, values, *rest = case.arguments
    return reference.decode_attention(query.double(), keys.double(), values.double(), *rest)


def assert_close_to_float64(found: Tensor, case: Case, rounded_weights: bool = False) -> None:
    """Compare with float64, within the error of float32 sums and one rounding of the result.

    Parameters
    ----------
    rounded_weights : bool
        Whether weights are rounded to the dtype of the values, as for a GPU's tensor cores.
    """
    case = case.to("cpu")
    result = expected(case)
    assert result.isfinite().all()
    assert found.dtype == case.query.dtype
    assert found.shape == result.shape
    eps = torch.finfo(found.dtype).eps
    largest = case.values.double().nan_to_num(0).abs().max() if case.values.numel() else 0
    sums = (1e-5 if found.dtype != torch.float64 else 1e-13) * largest
    rounding = eps * result.abs() + rounded_weights * eps * largest
    assert ((found.cpu() - result).abs() <= sums + rounding).all()
