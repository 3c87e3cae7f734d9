"""Trimtab: training-free optimization of decoder-only language models, honestly measured."""

__version__ = "0.1.0"
