"""What a run is of, and where it is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from trimtab.files import flatten, replacing

RECORD = "wandb.yaml"  # what a job, or a sweep, says of its run beside its results


@dataclass(frozen=True)
class Job:
    """What a run is of.

    Parameters
    ----------
    kind : str
        Its ``job_type``: ``calibrate``, ``evaluate`` or ``summary``.
    name : str
        Its display name.
    config : dict
        See `configuration`.
    tags : sequence of str
        Names of the methods.
    group : str, optional
        Name that the jobs of a sweep share.
    folder : Path, optional
        Where the record of the run is kept. A run that one there tells of is replaced.
    """

    kind: str
    name: str
    config: dict[str, Any] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    group: str | None = None
    folder: Path | None = None


@dataclass(frozen=True)
class Record:
    """Where a run is kept, for who reads its job's folder later."""

    id: str
    mode: str
    project: str
    entity: str | None
    group: str | None
    folder: str
    directory: str

    def write(self, folder: Path) -> None:
        with replacing(folder / RECORD) as temporary:
            OmegaConf.save(asdict(self), temporary)

    @classmethod
    def read(cls, folder: Path) -> Record | None:
        """Return the record of a job or a sweep, None where it has no run."""
        path = folder / RECORD
        return cls(**cast(dict[str, Any], OmegaConf.load(path))) if path.exists() else None

    @property
    def waits(self) -> bool:
        """Whether the run is on this disk alone, so that it has to be uploaded."""
        directory = Path(self.directory)
        return self.mode == "offline" and directory.exists() and not any(directory.glob("*.synced"))


def configuration(composed: DictConfig, choices: Mapping[str, str]) -> dict[str, Any]:
    """Return a job's settings under the names that are typed on the command line.

    These are the names of a W&B sweep's parameters too. Nested, a parameter ``methods`` would
    replace the settings of all methods, and one of ``methods.larosa.sparsity`` would stand beside
    the setting that it is.

    Parameters
    ----------
    composed : DictConfig
        The whole configuration of the job.
    choices : mapping
        The option chosen in each group, such as ``model``.
    """
    nested = OmegaConf.to_container(composed, resolve=True, enum_to_str=True)
    flat = flatten(cast(dict[str, Any], nested))
    settings = {name: item for name, item in flat.items() if not name.endswith("_target_")}
    listed = {"methods": ",".join(composed.methods)} if composed.get("methods") else {}
    return settings | listed | dict(choices)
