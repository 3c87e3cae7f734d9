"""Weights & Biases: one run a job, offline unless asked otherwise."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import wandb
from omegaconf import DictConfig, OmegaConf
from wandb.env import get_data_dir

from trimtab.artifact import Artifact
from trimtab.config import TrackingConfig, TrackingMode
from trimtab.errors import ConfigError, TrimtabError
from trimtab.files import flatten, is_table, require_writable
from trimtab.progress import say
from trimtab.settings import path_of


class Log:
    """What a job may write to its run."""

    def __init__(self, run: wandb.Run) -> None:
        self._run = run

    def artifact(self, artifact: Artifact, folder: Path) -> None:
        """Log a calibration artifact, its files included, and its figures as the summary.

        Figures are the numbers and names among its statistics; lists stay in the artifact.
        """
        digest = artifact.key.digest
        digests = {**self._run.config.get("artifact_digests", {}), artifact.key.method: digest}
        self._run.config.update({"artifact_digests": digests}, allow_val_change=True)
        if not self._run.disabled:
            entry = wandb.Artifact(f"{artifact.key.method}-{digest}", type="calibration")
            for path in filter(Path.is_file, sorted(folder.rglob("*"))):  # `add_dir` prints
                name = str(path.relative_to(folder))
                entry.add_file(str(path), name, policy="immutable", skip_cache=True)
            self._run.log_artifact(entry)
        figures = flatten(artifact.statistics)
        self._run.summary.update(
            {"wall_seconds": artifact.run["wall_seconds"]}
            | {name: item for name, item in figures.items() if not isinstance(item, list)}
        )

    def result(self, result: dict[str, Any], report: Path) -> None:
        """Log figures as the summary, raw samples as tables and the report's plots as images."""
        self._run.config.update({"artifact_digests": result["artifacts"]})
        figures = flatten(result)
        tables = {name: item for name, item in figures.items() if is_table(item)}
        self._run.summary.update(
            {k: v for k, v in figures.items() if k not in tables and not k.startswith("samples.")}
        )
        for name, rows in tables.items():
            table = wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])
            self._run.log({name.replace(".", "/"): table})
        for plot in sorted(report.parent.glob("*.png")):
            self._run.log({f"plots/{plot.stem}": wandb.Image(str(plot))})


def check(config: TrackingConfig) -> None:
    """Refuse folders that `run` could not write, before there is work to lose."""
    if config.mode is not TrackingMode.disabled:
        require_writable("tracking.folder", config.folder)
        require_writable("WANDB_DATA_DIR", path_of(get_data_dir()))  # where it gathers tables


@contextmanager
def run(
    config: TrackingConfig, job_type: str, composed: DictConfig, group: str | None
) -> Iterator[Log]:
    """Open one run for the time of the ``with``; it is finished whatever happens.

    Parameters
    ----------
    job_type : str
        ``calibrate`` or ``evaluate``.
    composed : DictConfig
        The job's whole configuration, logged resolved.
    group : str or None
        Name that the jobs of a sweep share.

    Raises
    ------
    ConfigError
        If a folder cannot be written, or Weights & Biases refuses to open the run.
    TrimtabError
        If it refuses a variable of its own.
    """
    for name in [one for one in os.environ if one.startswith("WANDB_") and not os.environ[one]]:
        del os.environ[name]  # W&B takes an empty variable for a value, and refuses it
    check(config)
    keeps = config.mode is not TrackingMode.disabled
    if keeps:
        Path(config.folder).mkdir(parents=True, exist_ok=True)
    try:
        opened = wandb.init(
            mode=config.mode.value,
            project=config.project,
            entity=config.entity,
            dir=config.folder if keeps else None,
            group=group,
            job_type=job_type,
            config=cast(dict[str, Any], OmegaConf.to_container(composed, resolve=True)),
            settings=wandb.Settings(silent=True),
        )
    except wandb.Error as error:
        raise _refusal(config, str(error).rstrip(".")) from error
    except ValueError as error:  # the settings above are checked
        reason = " ".join(str(error).split())
        raise TrimtabError(f"W&B refuses one of its variables, WANDB_...: {reason}") from error
    # Not `with opened`: on an exception that prints a traceback of its own.
    exit_code = 1
    try:
        yield Log(opened)
        exit_code = 0
    finally:
        folder = Path(opened.dir).parent
        opened.finish(exit_code=exit_code)
        if config.mode is TrackingMode.offline:
            say(f"W&B run kept offline; upload it with: wandb sync {folder}")


def _refusal(config: TrackingConfig, reason: str) -> ConfigError:
    if reason.startswith("Invalid project name"):
        return ConfigError("tracking.project", config.project, reason)
    online = config.mode is TrackingMode.online
    advice = "run `wandb login`, or use tracking.mode=offline" if online else "or disable tracking"
    return ConfigError("tracking.mode", config.mode.value, f"{reason}; {advice}")
