"""Hydra's sweeper over what a sweep has left to do.

Hydra looks for sweepers in this package alone, and imports this module in all its programs: what
is heavy is imported where it is used.
"""

from __future__ import annotations

from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.types import Override, Quote, QuotedString


class Unfinished(BasicSweeper):
    """Runs the jobs of a sweep that have no result, each in the folder that it had."""

    def split_arguments(  # type: ignore[override]
        self, overrides: list[Override], max_batch_size: int | None
    ) -> list[list[list[str]]]:
        """Return the overrides of the jobs to run, in batches; tracking's are those of now.

        The jobs are those that were written down when the sweep was started: the values of a
        ``shuffle`` come in another order every time they are read.
        """
        from trimtab.commands.folders import is_running
        from trimtab.commands.parsing import full_key, parsed
        from trimtab.errors import ConfigError
        from trimtab.sweep_state import is_finished, started

        assert self.config is not None
        sweep = Path(self.config.hydra.sweep.dir)
        now = [one for one in overrides if one.key_or_group.startswith("tracking.")]
        tracking = {
            full_key(one): str(one.input_line) for one in now if not one.is_sweep_override()
        }
        left = []
        for name, job in started(sweep).items():
            folder = sweep / name
            if is_running(folder):
                raise ConfigError("resume", folder, "is still running: wait until it has ended")
            if not is_finished(folder):
                own = {full_key(one): str(one.input_line) for one in parsed(job)} | tracking
                quoted = QuotedString(name, Quote.single).with_quotes()
                left.append([*own.values(), f"hydra.sweep.subdir={quoted}"])
        return list(self.split_overrides_to_chunks(left, max_batch_size)) if left else []

    def validate_batch_is_legal(self, batch: object) -> None:
        """Leave it: the jobs were checked before the sweep was started."""
