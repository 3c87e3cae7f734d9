"""Tokenizers that have n-grams as tokens, exact to the base tokens of every text."""
