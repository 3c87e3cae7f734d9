"""What backs a model's weights in memory.

Scattered pages of 4 KB take longer to read than pages of 2 MB, and which ones a process gets
depends on how the weights came there (mapped from a file, copied, made by a method) and on how long
the machine has run. So models are only compared on one backing.
"""

from __future__ import annotations

import ctypes
import os
import re
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.ranges import member_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

PR_SET_THP_DISABLE = 41  # linux/prctl.h
# Read by torch at its first allocation on the CPU: those of 2 MB and more are then made for huge
# pages.
TORCH_HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"
PART = 2**26  # bytes of weights that are moved at a time
ALIGNMENT = 64


class Backing(StrEnum):
    """Which pages the weights of models are to lie in.

    With `huge`, in anonymous memory, in huge pages as far as the system has them; with `as_loaded`,
    wherever loading, copying and methods have put them, in ordinary pages.
    """

    huge = "huge"
    as_loaded = "as_loaded"


def use_pages(backing: Backing | str) -> None:
    """Have the memory that this process allocates from now on be backed so.

    To be called before torch allocates a tensor on the CPU, for the first time.

    Raises
    ------
    ConfigError
        If there is no such backing.
    """
    ordinary = member_of(Backing, backing, "backing") is Backing.as_loaded
    os.environ[TORCH_HUGE_PAGES] = "1"
    # It fails only where the kernel has no huge pages, and so nothing to disable.
    ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, int(ordinary), 0, 0, 0)


def pack(model: PreTrainedModel) -> None:
    """Move a model's weights on the CPU into a few large allocations, in the order of its modules.

    Small matrices fill huge pages only together. Weights that are mapped from a file leave it;
    those that other processes may share, or that are more than numbers side by side, stay where
    they are. At no time are there two copies of more than `PART` bytes, or of more than the largest
    weight, unless many weights lie in one allocation, which is freed with the last of them, or
    something beside the model refers to their old memory, which it goes on to do.
    """
    import torch

    parts: list[list[_Block]] = []
    room = 0
    for block in _blocks(model):
        if not parts or block.size > room:
            parts.append([])
            room = max(PART, block.size)
        parts[-1].append(block)
        room -= block.size
    with torch.inference_mode(False), torch.no_grad():
        for part in parts:
            places = torch.empty(sum(one.size for one in part), dtype=torch.uint8)
            for block, place in zip(part, places.split([one.size for one in part]), strict=True):
                for tensor in block.tensors:
                    offset = tensor.data_ptr() - block.start
                    flat = place[offset : offset + _extent(tensor)].view(tensor.dtype)
                    target = flat.as_strided(tensor.shape, tensor.stride())
                    tensor.data = target.copy_(tensor.data)


@dataclass
class _Block:
    """Weights that lie in one another: the same numbers, overlapping ones, or columns in turn."""

    start: int  # at a multiple of `ALIGNMENT`
    end: int
    tensors: list[torch.Tensor]

    @property
    def size(self) -> int:
        """Bytes that they take, up to a multiple of `ALIGNMENT`."""
        return -(-(self.end - self.start) // ALIGNMENT) * ALIGNMENT

    @property
    def whole(self) -> bool:
        """Whether nothing else can be much of the block."""
        return sum(one.nbytes for one in self.tensors) + ALIGNMENT > self.end - self.start


def _blocks(model: PreTrainedModel) -> list[_Block]:
    """Return the weights that can be moved, in the order of the modules."""
    own = (
        (*module.parameters(recurse=False), *module.buffers(recurse=False))
        for module in model.modules()
    )
    mapped = _shared_mappings()
    tensors = [
        tensor
        for tensor in dict.fromkeys(chain.from_iterable(own))
        if _is_plain(tensor)
        and tensor.numel()
        and not any(start <= tensor.data_ptr() < end for start, end in mapped)
    ]
    blocks: list[_Block] = []
    for tensor in sorted(tensors, key=lambda one: one.data_ptr()):
        start = tensor.data_ptr()
        if not blocks or start >= blocks[-1].end:
            blocks.append(_Block(start // ALIGNMENT * ALIGNMENT, start, []))
        blocks[-1].tensors.append(tensor)
        blocks[-1].end = max(blocks[-1].end, start + _extent(tensor))
    order = {tensor: place for place, tensor in enumerate(tensors)}
    movable = [one for one in blocks if one.whole]
    return sorted(movable, key=lambda one: min(order[tensor] for tensor in one.tensors))


def _is_plain(tensor: torch.Tensor) -> bool:
    """Return whether a tensor is strided numbers in memory, and no class of somebody's own."""
    import torch

    return (
        type(tensor) in (torch.Tensor, torch.nn.Parameter)
        and tensor.device.type == "cpu"
        and tensor.layout == torch.strided
        and not (tensor.is_quantized or tensor.is_nested)
    )


def _shared_mappings() -> list[tuple[int, int]]:
    """Return from where to where the memory is mapped that other processes may share."""
    found = Path("/proc/self/maps").read_text("utf-8", "replace")
    mappings = re.findall(r"^(\w+)-(\w+) ...s ", found, re.MULTILINE)
    return [(int(start, 16), int(end, 16)) for start, end in mappings]


def _extent(tensor: torch.Tensor) -> int:
    """Return the bytes from the first number of a tensor to the end of its last, if it has any."""
    steps = sum(n * (size - 1) for n, size in zip(tensor.stride(), tensor.shape, strict=True))
    return (steps + 1) * tensor.element_size()


def huge_page_bytes() -> int:
    """Return how many bytes of this process lie in huge pages."""
    return _huge_bytes("AnonHuge|ShmemPmd|FilePmd")


def huge_cache_bytes() -> int:
    """Return how many bytes of memory files, which virtual caches are in, lie in huge pages."""
    return _huge_bytes("ShmemPmd")


def _huge_bytes(kinds: str) -> int:
    found = Path("/proc/self/smaps_rollup").read_text("ascii")
    kilobytes = re.findall(rf"^(?:{kinds})\w+: +(\d+) kB$", found, re.MULTILINE)
    return 1024 * sum(map(int, kilobytes))
