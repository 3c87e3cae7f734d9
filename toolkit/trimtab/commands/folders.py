"""A folder holds the files of one job, or of one sweep: what would mix with them is refused."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from trimtab.commands.messages import is_mistake, stop
from trimtab.errors import ConfigError
from trimtab.files import REPORT, RESULTS


@contextmanager
def claimed(folder: Path, setting: str, *, below: bool = False) -> Iterator[None]:
    """Keep other jobs out of `folder` for the time of the ``with``.

    The claim ends with its process, however that ends.

    Parameters
    ----------
    setting : str
        Full name of the setting that the folder comes from.
    below : bool
        Whether results in folders below count too.

    Raises
    ------
    ConfigError
        If another job is at it, or has left its result or error; or if there is a report already,
        of a sweep or of somebody else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _lock(descriptor, folder, setting)
        for name in (*RESULTS, REPORT):
            pattern = f"**/{name}" if below and name in RESULTS else name
            if found := next(folder.glob(pattern), None):
                raise ConfigError(
                    setting, folder, f"holds another job's {found.relative_to(folder)}: name a "
                    "new folder, or remove this one"
                )  # fmt: skip
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path, setting: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        reason = "another job is running in it: name another folder"
        raise ConfigError(setting, folder, reason) from error
    except OSError:  # a file system that locks no folders: finished jobs are seen all the same
        pass


class Claim(Callback):
    """Refuses a folder before Hydra writes into it; a sweep's stays claimed until the end."""

    def __init__(self) -> None:
        self._held = ExitStack()

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse a job's folder; the job itself claims it."""
        self._claim(config.hydra.run.dir, "hydra.run.dir", below=False)
        self._held.close()

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Claim a sweep's folder."""
        self._claim(config.hydra.sweep.dir, "hydra.sweep.dir", below=True)

    def _claim(self, folder: str, setting: str, *, below: bool) -> None:
        try:
            self._held.enter_context(claimed(Path(folder), setting, below=below))
        except Exception as error:  # Hydra makes a warning of what a callback raises
            if not is_mistake(error):
                raise
            stop(error)
