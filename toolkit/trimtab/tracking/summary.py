"""The run that sums up a sweep."""

from __future__ import annotations

from pathlib import Path

from trimtab.config import TrackingConfig, TrackingMode
from trimtab.tracking.job import RECORD, Job, Record
from trimtab.tracking.run import run


def records(sweep: Path) -> list[Record]:
    """Return where the runs of a sweep's jobs are kept, none where its jobs had none."""
    folders = sorted(path.parent for path in sweep.rglob(RECORD) if path.parent != sweep)
    return [record for folder in folders if (record := Record.read(folder))]


def summarise(sweep: Path, config: TrackingConfig | None = None) -> None:
    """Write the summary run of a sweep; none where its jobs had no runs.

    Parameters
    ----------
    config : TrackingConfig, optional
        Where it goes; where None, beside the run of the first job.
    """
    if found := records(sweep):
        first = found[0]
        config = config or TrackingConfig(
            mode=TrackingMode(first.mode),
            project=first.project,
            entity=first.entity,
            folder=first.folder,
        )
        write_summary(sweep, config, first.group)


def write_summary(sweep: Path, config: TrackingConfig, group: str | None) -> None:
    """Write the one summary run of a sweep; it takes the place of an earlier one."""
    job = Job("summary", name=f"summary of {group}", group=group, folder=sweep)
    with run(config, job) as log:
        log.begin()
        log.sweep(sweep)
