"""Attention of one decode step over slots of different lengths, and the step's append.

The cache is read where it lies, and nothing of it beyond a slot's length is touched: those
addresses need not be mapped. The operators are ``torch.ops.trimtab``'s, as those of
`trimtab_kernels.sparse_linear` are. C++ runs on a CPU (float32, bfloat16), Triton on a GPU
(float32, float16, bfloat16), and `trimtab_kernels.reference` anywhere else; `kernel_name` says
which.
"""

from trimtab_kernels.decode_attention.ops import append_kv, decode_attention, kernel_name

__all__ = ["append_kv", "decode_attention", "kernel_name"]
