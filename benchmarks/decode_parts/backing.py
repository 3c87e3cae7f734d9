"""Memory in pages of one size: a model's in small ones, as a control, llama.cpp's in huge ones."""

from __future__ import annotations

import ctypes
import mmap
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import PreTrainedModel

from trimtab.evaluation.memory import copied

MADV_HUGEPAGE, MADV_COLLAPSE = 14, 25  # linux/mman.h
HUGE_PAGE = 2**21
# Private memory that a program writes to, of no file: beginning and end.
ANONYMOUS = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) rw.p \S+ 00:00 0\s*(?:\[heap\])?$", re.MULTILINE)


def in_small_pages(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy of a model whose weights never get huge pages."""
    copy = copied(model)
    for tensor in (*copy.parameters(), *copy.buffers()):
        if tensor.numel():
            region = mmap.mmap(-1, tensor.nbytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            region.madvise(mmap.MADV_NOHUGEPAGE)
            place = torch.frombuffer(region, dtype=tensor.dtype).view(tensor.shape)
            tensor.data = place.copy_(tensor.data)
    return copy


@contextmanager
def collapsed() -> Iterator[None]:
    """Have what is allocated within the block, by whatever code, lie in huge pages afterwards.

    Where the system cannot do that (Linux before 6.1), it stays as it is; `machine.pages` says what
    there is.
    """
    before = _anonymous()
    yield
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    for start, end in _anonymous() - before:
        first, last = -(-start // HUGE_PAGE) * HUGE_PAGE, end // HUGE_PAGE * HUGE_PAGE
        for advice in (MADV_HUGEPAGE, MADV_COLLAPSE):
            if first < last:
                madvise(first, last - first, advice)


def _anonymous() -> set[tuple[int, int]]:
    found = ANONYMOUS.findall(Path("/proc/self/maps").read_text("ascii", "replace"))
    return {(int(start, 16), int(end, 16)) for start, end in found}
