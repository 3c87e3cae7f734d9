"""A GPU for each process that joblib starts; SLURM and Ray hand them out themselves."""

from __future__ import annotations

from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig


class HandOut(Callback):
    """Has a process take a GPU before its first job uses one."""

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Take one, where joblib is the launcher."""
        if config.hydra.launcher._target_.endswith(".JoblibLauncher"):
            from trimtab.quiet import take_gpu

            take_gpu()
