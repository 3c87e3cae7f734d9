"""Kernels: tensors in, tensors out. Nothing here knows of models or methods."""
