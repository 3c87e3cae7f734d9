"""AdaptiVocab."""
