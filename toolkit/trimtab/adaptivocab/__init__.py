"""AdaptiVocab: n-grams of a domain as tokens, and drafts (arXiv 2503.19693)."""

from trimtab.adaptivocab.method import AdaptiVocab
from trimtab.adaptivocab.settings import Mode, NGramSelection, Rows

__all__ = ["AdaptiVocab", "Mode", "NGramSelection", "Rows"]
