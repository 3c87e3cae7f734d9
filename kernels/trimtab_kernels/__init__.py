"""Kernels: tensors in, tensors out, with no knowledge of models or methods.

`reference` defines each kernel in plain PyTorch. A folder per kernel holds the fast versions, C++
for a CPU and Triton for a GPU, and chooses between them. `build` compiles the C++.
"""
