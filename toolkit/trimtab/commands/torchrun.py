"""A command as one of several processes that torchrun started: one of them speaks for all."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from trimtab.progress import is_muted, mute

GRACE = 60  # seconds for the process that speaks to say what went wrong


def is_launched() -> bool:
    """Return whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


@contextmanager
def one_speaks() -> Iterator[None]:
    """Have all of torchrun's processes but the first be silent for the time of the ``with``.

    torchrun ends every process as soon as one has failed. One that fails in silence waits for it,
    so that the one that says why can do so.
    """
    if not is_launched():
        yield
        return
    if os.environ["RANK"] != "0":
        mute()
    try:
        yield
    except SystemExit as end:
        if end.code and is_muted():
            time.sleep(GRACE)
        raise
