"""Attention of one decode step over slots of different lengths, and the step's append.

The cache is read where it lies, and nothing of it beyond a slot's length is touched: those
addresses need not be mapped. The operators are ``torch.ops.trimtab``'s, as those of
`kernels.sparse_linear` are. What runs: C++ on a CPU (float32 and bfloat16), Triton on a GPU
(float32, float16 and bfloat16), and elsewhere `kernels.reference`; `kernel_name` says which.
"""

from kernels.decode_attention.ops import append_kv, decode_attention, kernel_name

__all__ = ["append_kv", "decode_attention", "kernel_name"]
