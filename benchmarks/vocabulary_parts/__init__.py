"""The parts of `vocabulary.py`."""
