"""AdaptiVocab: n-grams of a domain as tokens, and as drafts (arXiv 2503.19693)."""

from trimtab.adaptivocab.method import AdaptiVocab
from trimtab.adaptivocab.rows import Rows
from trimtab.adaptivocab.settings import Choice, Mode

__all__ = ["AdaptiVocab", "Choice", "Mode", "Rows"]
