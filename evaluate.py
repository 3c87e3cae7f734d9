"""Measure a stack against the unmodified model: ``python evaluate.py methods=larosa``."""

from toolkit.commands.evaluate import main

if __name__ == "__main__":
    main()
