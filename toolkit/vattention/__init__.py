"""vAttention: a KV cache whose tensors are reserved in full and backed by pages as they fill.

After arXiv 2405.04437, on the stock driver of an NVIDIA GPU or in the memory of the host.
"""

from toolkit.vattention.attention import decode_kernel
from toolkit.vattention.cache import VirtualCache
from toolkit.vattention.layout import Layout
from toolkit.vattention.method import VAttention
from toolkit.vattention.pages import KVOutOfMemory
from toolkit.vattention.virtual_kv import VirtualKV

__all__ = [
    "KVOutOfMemory",
    "Layout",
    "VAttention",
    "VirtualCache",
    "VirtualKV",
    "decode_kernel",
]
