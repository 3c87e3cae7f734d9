"""What a job writes to its run."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import wandb

from trimtab.artifact import Artifact, folder_of
from trimtab.files import flatten, is_table, temporary_folder
from trimtab.report import build_report, draw
from trimtab.report.load import load_jobs

ROOM = 2**16  # bytes that are free where the disk is not full


class Log:
    """What a job may write to its run; where that fails, the job goes on.

    Parameters
    ----------
    open_run : callable or None
        Opens the run, tags in; None where nothing is kept.

    Attributes
    ----------
    failure : Exception or None
        The first that kept something out of the run.
    """

    def __init__(self, open_run: Callable[[tuple[str, ...]], wandb.Run] | None) -> None:
        self._open = open_run
        self._run: wandb.Run | None = None
        self._exit_code = 0
        self.failure: Exception | None = None

    def begin(self, *tags: str) -> None:
        """Open the run, now that nothing of the job's settings is left to refuse."""
        if self._open is not None:
            self._run = self._open(tags)

    def artifact(self, artifact: Artifact, folder: Path) -> None:
        """Log a calibration with its files, and its figures under the names of artifact.json.

        The method's name stands before them.
        """
        if self._run is None:
            return
        method = artifact.key.method
        with self._going_on():
            self._run.config.update({f"artifact_digests.{method}": artifact.key.digest})
            self._run.log_artifact(_calibration(method, artifact.key.digest, folder))
            figures = {"statistics": artifact.statistics, "run": artifact.run}
            self._run.summary.update(scalars({method: figures}))

    def result(self, result: dict[str, Any], folder: Path, artifacts: str) -> None:
        """Log a result: figures, raw samples as tables, the plots of the job's own report.

        Parameters
        ----------
        folder : Path
            The job's, with its result.json.
        artifacts : str
            Folder that artifacts are kept under.
        """
        if self._run is None:
            return
        with self._going_on():
            for method, digest in result["artifacts"].items():
                self._run.config.update({f"artifact_digests.{method}": digest})
                place = folder_of(artifacts, result["model"]["name"], method, digest)
                self._use(_calibration(method, digest, place))
            figures = flatten(result)
            found = {name: item for name, item in figures.items() if is_table(item)}
            tables = {name.replace(".", "/"): table(rows) for name, rows in found.items()}
            with temporary_folder() as pictures:
                draw(folder, pictures)
                self._write(scalars(result), tables | images(pictures))

    def sweep(self, folder: Path) -> None:
        """Log a sweep's report: one row a job, the plots, and the report with its files."""
        if self._run is None:
            return
        report = build_report(folder).parent
        jobs = load_jobs(folder)
        with self._going_on():
            rows = [scalars({**job.content, "label": job.label}) for job in jobs]
            media: dict[str, Any] = {"jobs": table(rows), **images(report)}
            pages = report.glob("*.html")
            media |= {f"report/{page.stem}": wandb.Html(str(page)) for page in pages}
            entry = wandb.Artifact(f"report-{self._run.id}", type="report")
            self._run.log_artifact(_with_files(entry, report))
            failed = sum(not job.ok for job in jobs)
            self._write({"measured_jobs": len(jobs) - failed, "failed_jobs": failed}, media)

    def fail(self, kind: str, message: str) -> None:
        """Say what the job failed of."""
        self._exit_code = 1
        if self._run is None:
            return
        with self._going_on():
            self._run.summary.update({"status": "error", "type": kind, "message": message})

    def finish(self) -> Path | None:
        """Close the run and return its folder, None where there is none."""
        if self._run is None:
            return None
        folder = Path(self._run.dir).parent
        with self._going_on():
            self._run.finish(exit_code=self._exit_code)
            # W&B writes runs in a process of its own, which does not say that it could not.
            if shutil.disk_usage(folder).free < ROOM:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return folder

    @contextmanager
    def _going_on(self) -> Iterator[None]:
        """Keep what stands in the way of the run from the job, which does not depend on it."""
        try:
            yield
        except Exception as error:  # W&B raises many unrelated types
            self.failure = self.failure or error
            self._exit_code = 1

    def _use(self, files: wandb.Artifact) -> None:
        """Make a calibration an input of the run, uploading it unless W&B has it already.

        Offline `use_artifact` refuses. What it does with an artifact that is not uploaded yet is
        this, which `wandb sync` does later.
        """
        assert self._run is not None
        if self._run.offline:
            self._run._log_artifact(files, is_user_created=True, use_after_commit=True)
        else:
            self._run.use_artifact(files)

    def _write(self, figures: Mapping[str, Any], media: Mapping[str, Any]) -> None:
        """Write all in one step, so that a run has no half of it.

        Numbers are in the history too, where a sweep of W&B looks for its metric.
        """
        assert self._run is not None
        numbers = {k: v for k, v in figures.items() if not isinstance(v, str | bool)}
        self._run.log({**media, **numbers})
        self._run.summary.update(dict(figures))


def scalars(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers, names and answers of a JSON value under their dotted names.

    Its settings are in the run's configuration.
    """
    aside = ("samples", "reasons", "settings")
    told = {name: item for name, item in content.items() if name not in aside}
    return {k: v for k, v in flatten(told).items() if isinstance(v, str | bool | int | float)}


def table(rows: Sequence[Mapping[Any, Any]]) -> wandb.Table:
    """Return rows as a table, with all columns that any row has."""
    columns: list[str | int] = list(dict.fromkeys(name for row in rows for name in row))
    return wandb.Table(columns=columns, data=[[row.get(name) for name in columns] for row in rows])


def images(report: Path) -> dict[str, wandb.Image]:
    """Return the plots of a report."""
    return {f"plots/{path.stem}": wandb.Image(str(path)) for path in sorted(report.glob("*.png"))}


def _calibration(method: str, digest: str, folder: Path) -> wandb.Artifact:
    """Return an artifact as W&B's: the same files have the same digest there, and are kept once."""
    entry = wandb.Artifact(f"{method}-{digest}", type="calibration")
    return _with_files(entry, folder, policy="immutable", skip_cache=True)


def _with_files(entry: wandb.Artifact, folder: Path, **how: Any) -> wandb.Artifact:
    folder = folder.resolve()  # `wandb sync` may run elsewhere
    for path in filter(Path.is_file, sorted(folder.rglob("*"))):  # `add_dir` prints
        entry.add_file(str(path), str(path.relative_to(folder)), **how)
    return entry
