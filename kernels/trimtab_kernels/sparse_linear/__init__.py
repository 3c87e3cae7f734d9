"""Selection of activations, and products that skip the weight rows of those that were dropped.

The operators belong to ``torch.ops.trimtab``, so that torch.compile and torch.export trace through
them. C++ runs on a CPU (products in float32 and bfloat16), Triton on a GPU (float16 and bfloat16),
and `trimtab_kernels.reference` in all other cases; `kernel_name` says which.
"""

from trimtab_kernels.sparse_linear.ops import (
    gather_tokens,
    int8_linear,
    keep_above,
    keep_topk,
    kernel_name,
    sparse_linear,
)

__all__ = [
    "gather_tokens", "int8_linear", "keep_above", "keep_topk", "kernel_name", "sparse_linear",
]  # fmt: skip
