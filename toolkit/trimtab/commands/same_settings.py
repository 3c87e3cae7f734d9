"""Whether jobs that go on with a sweep would have the settings that it was started with."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError  # type: ignore[import-untyped]

from trimtab.commands.jobs import composed
from trimtab.errors import ConfigError
from trimtab.files import flatten
from trimtab.ranges import written

RECORD = ".hydra"  # the folder in which Hydra writes what a job was composed of, as it begins


def require_same(config: DictConfig, sweep: Path, jobs: Sequence[Path]) -> None:
    """Refuse to go on where files that the settings come from say something else by now.

    Compared is every job that has begun; where files go for tracking may differ.

    Parameters
    ----------
    config : DictConfig
        What is resumed, as it is composed now.
    sweep : Path
        Its folder.
    jobs : sequence of Path
        The folders of its jobs, begun or not.

    Raises
    ------
    ConfigError
        Naming what differs.
    """
    for job in jobs:
        started, given = (_read(job / RECORD / name) for name in ("config.yaml", "overrides.yaml"))
        if not started or not isinstance(given, list):
            continue
        _, now = composed(config, given)
        before = _settings(started)
        after = _settings(OmegaConf.to_container(OmegaConf.create(OmegaConf.to_yaml(now))))
        changed = [key for key in {**before, **after} if before.get(key) != after.get(key)]
        if changed:
            told = "; ".join(
                f"{key} was {written(before.get(key))} and is {written(after.get(key))}"
                for key in changed
            )
            raise ConfigError(
                "resume", sweep, f"settings have changed since {job} was started: {told}: "
                "put back the file that sets them, or start it again in a new folder"
            )  # fmt: skip


def _read(path: Path) -> Any:
    """Return what a file of Hydra's holds; None where it is missing or was cut off."""
    with suppress(OSError, ValueError, YAMLError):
        return OmegaConf.to_container(OmegaConf.load(path))
    return None


def _settings(config: Any) -> dict[str, Any]:
    """Return the settings by their full names, but for those of tracking."""
    return flatten({name: part for name, part in config.items() if name != "tracking"})
