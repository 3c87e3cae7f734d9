"""The parts of `kv.py`."""
