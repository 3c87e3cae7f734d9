"""A sweep ends in a summary run, whether or not all its jobs went well."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from trimtab.commands.jobs import overrides_of
from trimtab.commands.messages import is_mistake, one_line
from trimtab.config import TrackingConfig
from trimtab.progress import say

_begun: list[tuple[Path, TrackingConfig | None]] = []


class Summary(Callback):
    """Notes which sweep begins: where a job fails, Hydra calls nothing at the end."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Note the sweep's folder, and where its runs go unless that differs between its jobs."""
        swept = [one.key_or_group for one in overrides_of(config.hydra) if one.is_sweep_override()]
        differs = any(key.startswith("tracking") for key in swept)
        tracking = None if differs else OmegaConf.to_object(config.tracking)
        assert tracking is None or isinstance(tracking, TrackingConfig)
        _begun.append((Path(config.hydra.sweep.dir).resolve(), tracking))


@contextmanager
def summarised() -> Iterator[None]:
    """Sum up the sweep that runs in the ``with``, if one does, unless it is interrupted.

    Where that cannot be done, it is a warning: the sweep and its own errors do not depend on it.
    """
    try:
        yield
    finally:
        if _begun and not isinstance(sys.exception(), KeyboardInterrupt):
            from trimtab import tracking

            try:
                tracking.summarise(*_begun.pop())
            except Exception as error:
                if not is_mistake(error):
                    raise
                say(f"Warning: the sweep has no W&B summary: {one_line(error)}")
