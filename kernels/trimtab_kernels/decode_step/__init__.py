"""One decode step of a whole model: from the newest tokens to the logits of the next ones.

`plan` says what a step computes, as data: every executor runs the same `DecodePlan`. `reference`
is its meaning in plain PyTorch; `cpu` runs it as one C++ operator, `gpu` as a captured CUDA graph;
`dispatch` chooses.
"""

from trimtab_kernels.decode_step.plan import (
    Activation,
    DecodePlan,
    Embedding,
    Layer,
    Linear,
    Norm,
    Rotary,
    Selection,
    SiteInput,
)

__all__ = [
    "Activation",
    "DecodePlan",
    "Embedding",
    "Layer",
    "Linear",
    "Norm",
    "Rotary",
    "Selection",
    "SiteInput",
]
