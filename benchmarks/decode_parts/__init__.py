"""The parts of `decode.py` and `scaling.py`."""
