"""The two commands, importable so that an installation and a launcher's worker find them."""
