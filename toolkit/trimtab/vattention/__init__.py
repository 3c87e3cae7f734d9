"""vAttention: a KV cache whose tensors are reserved in full and backed by pages as they fill.

After arXiv 2405.04437, on the stock driver of an NVIDIA GPU or in the memory of the host.
"""

from trimtab.vattention.attention import decode_kernel
from trimtab.vattention.cache import VirtualCache
from trimtab.vattention.layout import Layout
from trimtab.vattention.method import VAttention
from trimtab.vattention.pages import KVOutOfMemory
from trimtab.vattention.virtual_kv import VirtualKV

__all__ = [
    "KVOutOfMemory",
    "Layout",
    "VAttention",
    "VirtualCache",
    "VirtualKV",
    "decode_kernel",
]
