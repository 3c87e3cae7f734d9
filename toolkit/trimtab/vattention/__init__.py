"""vAttention: a KV cache whose tensors are reserved at full size and backed by pages as they fill.

After arXiv 2405.04437, on the stock driver of an NVIDIA GPU, or in the memory of the host.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from trimtab.vattention.method import VAttention
from trimtab.vattention.settings import CacheSettings, Layout

if TYPE_CHECKING:
    from trimtab.vattention.attention import decode_kernel
    from trimtab.vattention.cache import VirtualCache
    from trimtab.vattention.pages import KVOutOfMemory
    from trimtab.vattention.virtual_kv import VirtualKV

__all__ = [
    "CacheSettings",
    "KVOutOfMemory",
    "Layout",
    "VAttention",
    "VirtualCache",
    "VirtualKV",
    "decode_kernel",
]

# Imported on first use, so that the settings alone need neither PyTorch nor transformers.
_PLACES = {
    "KVOutOfMemory": "pages",
    "VirtualCache": "cache",
    "VirtualKV": "virtual_kv",
    "decode_kernel": "attention",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
