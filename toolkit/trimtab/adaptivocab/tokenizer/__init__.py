"""A tokenizer with n-grams, exact to the base tokens of every text."""
