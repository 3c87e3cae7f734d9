"""A sweep ends in a summary run, whether or not all its jobs went well."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

_begun: list[Path] = []


class Summary(Callback):
    """Notes which sweep begins: where a job fails, Hydra calls nothing at the end."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Note the sweep's folder."""
        _begun.append(Path(config.hydra.sweep.dir).resolve())


@contextmanager
def summarised() -> Iterator[None]:
    """Sum up the sweep that runs in the ``with``, if one does, unless it is interrupted."""
    try:
        yield
    finally:
        if _begun and not isinstance(sys.exception(), KeyboardInterrupt):
            from trimtab import tracking

            tracking.summarise(_begun.pop())
