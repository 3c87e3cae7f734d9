"""Calibrate a method and save the artifact: ``python calibrate.py method=larosa sparsity=0.4``."""

from toolkit.commands.calibrate import main

if __name__ == "__main__":
    main()
