"""AdaptiVocab: n-grams of a domain as tokens, and as drafts (arXiv 2503.19693)."""

from toolkit.adaptivocab.method import AdaptiVocab
from toolkit.adaptivocab.rows import Rows
from toolkit.adaptivocab.settings import Choice, Mode

__all__ = ["AdaptiVocab", "Choice", "Mode", "Rows"]
