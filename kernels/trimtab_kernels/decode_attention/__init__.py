"""Attention of a decode step over slots of different lengths, and appending the step's tokens.

The cache is read in place. Nothing beyond a slot's length is touched, so those addresses need not
be mapped. Like those of `trimtab_kernels.sparse_linear`, the operators belong to
``torch.ops.trimtab``. C++ runs on a CPU (float32, bfloat16), Triton on a GPU (float32, float16,
bfloat16), and `trimtab_kernels.reference` in all other cases; `kernel_name` says which.
"""

from trimtab_kernels.decode_attention.ops import append_kv, decode_attention, kernel_name

__all__ = ["append_kv", "decode_attention", "kernel_name"]
