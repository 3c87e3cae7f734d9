"""Measure a stack of methods against the unmodified model."""
