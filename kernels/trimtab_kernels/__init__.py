"""Kernels: tensors in, tensors out. Nothing here knows of models or methods.

`reference` is what each of them means, in plain PyTorch; a folder each holds the fast forms, C++
for a CPU and Triton for a GPU, and chooses between them; `build` compiles the C++.
"""
