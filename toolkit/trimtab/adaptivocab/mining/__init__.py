"""Which n-grams of a text become tokens, or drafts."""
