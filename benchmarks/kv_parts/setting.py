"""Shared by the parts of `kv.py`: caches in the requested shape, and the available memory."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig

from trimtab.environment import available_host_bytes
from trimtab.vattention.layout import Geometry
from trimtab.vattention.settings import Layout
from trimtab.vattention.virtual_kv import VirtualKV

Options = argparse.Namespace
Record = dict[str, Any]

SPARE = 0.9  # the share of the available memory that a part may take
CACHES = 5  # how many a timed decode step fills, not counting the copy of a dynamic cache's layer


def grid(options: Options) -> Iterator[tuple[Layout, int]]:
    """Yield the layouts and page sizes to be measured."""
    return product(options.layout, options.page_group)


def geometry(options: Options, slots: int, layout: Layout = Layout.slot) -> Geometry:
    """Return the requested shape."""
    shape = options.layers, slots, options.max_len, options.kv_heads, options.head_dim
    return Geometry(*shape, options.dtype, layout)


def layer_bytes(options: Options) -> int:
    """Return the bytes of a token's keys and values in one layer."""
    return geometry(options, slots=1).token_bytes // options.layers


def open_kv(options: Options, slots: int, layout: Layout, page: int, **changes: Any) -> VirtualKV:
    """Return a cache of the requested shape, with some changes."""
    names = "layers", "max_len", "kv_heads", "head_dim", "dtype", "device"
    shape = {name: getattr(options, name) for name in names} | changes
    return VirtualKV(slots=slots, layout=layout, page_group=page, **shape)


def llama(options: Options, layers: int) -> LlamaConfig:
    """Return a config whose attention has the requested shape."""
    return LlamaConfig(
        hidden_size=options.heads * options.head_dim,
        num_hidden_layers=layers,
        num_attention_heads=options.heads,
        num_key_value_heads=options.kv_heads,
        head_dim=options.head_dim,
    )


def label(layout: Layout, page: int) -> str:
    """Return the name of a virtual cache in a table."""
    return f"virtual, {layout}, {size(page)}"


def size(page: int) -> str:
    """Return the size of a page as text."""
    return f"{page >> 20} MB" if page % 2**20 == 0 else f"{page >> 10} KB"


def lacking(nbytes: int, options: Options, remedy: str) -> str | None:
    """Return why that many bytes are not available, and a remedy; None if they are."""
    room = SPARE * _available_bytes(options.device)
    if nbytes <= room:
        return None
    return (
        f"needs {nbytes / 2**30:.2f} GiB, and {SPARE:.0%} of the available memory is "
        f"{room / 2**30:.2f}; {remedy}"
    )


def kilobytes(path: str, name: str) -> int:
    """Return an entry, in bytes, of a system file that lists kilobytes."""
    lines = Path(path).read_text("utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def _available_bytes(device: str) -> int:
    if device != "cpu":
        return torch.cuda.mem_get_info()[0]
    return available_host_bytes()
