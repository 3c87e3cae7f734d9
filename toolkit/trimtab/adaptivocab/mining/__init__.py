"""Choosing the n-grams of a text that may become tokens."""
