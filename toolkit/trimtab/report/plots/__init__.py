"""The plots of a report: a title that says what was found, and panels of one width."""

import os
import sys
from contextlib import suppress


def _import_matplotlib() -> None:
    """Import matplotlib, though MPLBACKEND may name a backend that is not installed here.

    Plots go to files, so none is needed; one that is installed is the process's all the same.
    """
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    if backend:
        with suppress(ValueError):
            matplotlib.rcParams["backend"] = backend


if "matplotlib" not in sys.modules:
    _import_matplotlib()
