"""Products that skip the weights behind dropped activations, and the selection before them.

The operators are ``torch.ops.trimtab``'s, so that torch.compile and torch.export trace through
them. What runs: C++ on a CPU (float32 and bfloat16 products), Triton on a GPU (float16 and
bfloat16), and elsewhere `trimtab_kernels.reference`; `kernel_name` says which.
"""

from trimtab_kernels.sparse_linear.ops import (
    int8_linear,
    keep_above,
    keep_topk,
    kernel_name,
    sparse_linear,
)

__all__ = ["int8_linear", "keep_above", "keep_topk", "kernel_name", "sparse_linear"]
