"""Calibrate a method and save the artifact: ``python calibrate.py method=larosa sparsity=0.4``."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # Trimtab is installed: what else is in this folder must not be imported by mistake.
    sys.path[:] = [path for path in sys.path if Path(path).resolve() != Path(__file__).parent]
    from trimtab.commands.calibrate import main

    main()
