"""Hydra's sweeper over what a sweep has left to do.

Hydra looks for sweepers in this package alone, and imports this module in all its programs: what
is heavy is imported where it is used.
"""

from __future__ import annotations

from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.types import Override, Quote, QuotedString
from omegaconf import open_dict


class Unfinished(BasicSweeper):
    """Runs the jobs of a sweep that have no result, each in the folder that it had."""

    def split_arguments(  # type: ignore[override]
        self, overrides: list[Override], max_batch_size: int | None
    ) -> list[list[list[str]]]:
        """Return the overrides of the jobs to run, in batches."""
        from trimtab.commands.folders import is_running
        from trimtab.errors import ConfigError
        from trimtab.sweep_state import is_finished

        assert self.config is not None
        (jobs,) = super().split_arguments(overrides, None)
        left = []
        for number, job in enumerate(jobs):
            name = self._folder(number, job)
            folder = Path(self.config.hydra.sweep.dir) / name
            if is_running(folder):
                raise ConfigError("resume", folder, "is still running: wait until it has ended")
            if not is_finished(folder):
                quoted = QuotedString(name, Quote.single).with_quotes()
                left.append([*job, f"hydra.sweep.subdir={quoted}"])
        return list(self.split_overrides_to_chunks(left, max_batch_size)) if left else []

    def _folder(self, number: int, job: list[str]) -> str:
        """Return the name of the folder that a job of this number has."""
        assert self.hydra_context is not None
        assert self.config is not None
        loader = self.hydra_context.config_loader
        config = loader.load_sweep_config(self.config, job)
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
        return str(config.hydra.sweep.subdir)
